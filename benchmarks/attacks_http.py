"""Attacks on the HTTP port: STOW-RS, the dashboard's pages and forms, and the protocol below them."""

from __future__ import annotations

import json
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import httpx
import mutations
from attacks_dicom import ATTACKER, LONGEST_S, Found, Ledger, Outcome
from pdu_mutations import Association

PATIENCE_S = 1.0
PATHS = (
    "/", "/studies", "/studies/{key}", "/outbox", "/models", "/charts", "/box", "/audit", "/sign-in", "/live",
    "/metrics", "/healthz", "/readyz", "/static/", "/dicom-web/studies", "/dicom-web/", "/favicon.ico",
)  # fmt: skip
TRICKS = (
    "/static/../../../../etc/passwd", "/static/..%2f..%2f..%2fetc/passwd", "/static/%2e%2e/%2e%2e/web.py",
    "/static//etc/passwd", "/static/..\\..\\web.py", "/static/%00", "//etc/passwd", "/studies/../../state/key",
    "/studies/%2e%2e%2fkey", "/studies/" + "a" * 8000, "/dicom-web/studies/..%2f..%2fetc", "/%ff%fe",
    "/?" + "x=1&" * 999, "http://elsewhere.example/", "*", "/static/%252e%252e/web.py",
    "/studies/<script>alert(1)</script>",
)  # fmt: skip
SECRETS = (b"root:x:", b"PRIVATE KEY", b"sqlite format", b"Traceback", b"<script>alert(1)")
INTERIM = re.compile(rb"^HTTP/1\.1 100[^\r]*\r\n\r\n")
METHODS = (b"GET", b"PUT", b"DELETE", b"TRACE", b"CONNECT", b"OPTIONS", b"", b"\xff", b"P" * 99)
KINDS = (b"image/jpeg", b"", b"application/dicom; x=" + b"y" * 99)
BOUNDARIES = (b"boundary=", b"boundary=lin", b"boundary=" + b"l" * 300)
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json", "x")
KIND = 'multipart/related; type="application/dicom"; boundary=line'


@dataclass(frozen=True, slots=True)
class Target:
    """What is attacked, with an account that may sign in.

    Attributes:
        cut_off_s: after which a peer that stands still, or drips, is to be cut off.
    """

    port: int
    recorded: Association
    ledger: Ledger
    cut_off_s: float
    account: str
    password: str


def stow(association: Association, content: bytes | None = None, boundary: bytes = b"line") -> tuple[bytes, bytes]:
    """(head without the length, body) of a store request."""
    part = b"--" + boundary + b"\r\nContent-Type: application/dicom\r\n\r\n" + (content or association.file)
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {KIND}\r\n".encode()
    return head, part + b"\r\n--" + boundary + b"--\r\n"


def whole(head: bytes, body: bytes) -> bytes:
    """A request as it should be."""
    return head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def exchange(port: int, request: bytes) -> Found:
    """Send bytes, read what comes, half-close, read to the end."""
    heard = bytearray()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=LONGEST_S, source_address=(ATTACKER, 0)) as client:
            with suppress(ConnectionError):  # the answer may have come before all was sent
                client.sendall(request)
            client.settimeout(PATIENCE_S)
            with suppress(TimeoutError):
                while piece := client.recv(65536):
                    heard += piece
                    if heard.startswith(b"HTTP/1.1 ") and _is_whole(heard):
                        break
            with suppress(OSError):
                client.shutdown(socket.SHUT_WR)
            client.settimeout(LONGEST_S)
            while piece := client.recv(65536):
                heard += piece
    except TimeoutError:
        return Found("left open", tuple(_statuses(heard)))
    except OSError:
        return Found(_ending(heard, "reset"), tuple(_statuses(heard)))
    return Found(_ending(heard, "closed"), tuple(_statuses(heard)))


def _is_whole(heard: bytearray) -> bool:
    head, mark, body = INTERIM.sub(b"", bytes(heard)).partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(mark and length and len(body) >= int(length[1]))


def _ending(heard: bytearray, otherwise: str) -> str:
    found = re.match(rb"HTTP/1\.1 (\d{3})", INTERIM.sub(b"", heard))
    if any(secret in heard for secret in SECRETS):
        return "told a secret"
    return found[1].decode() if found else otherwise


def _statuses(heard: bytearray) -> list[tuple[str, int]]:
    """(SOP Instance UID, status) of a store request's answer."""
    head, _, body = INTERIM.sub(b"", bytes(heard)).partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    try:
        answer = json.loads(body[: int(length[1])] if length else body)
        stored = [(item, 0) for item in answer.get("00081199", {}).get("Value", [])]
        failed = [(item, 0xC000) for item in answer.get("00081198", {}).get("Value", [])]
        return [(item["00081155"]["Value"][0], status) for item, status in stored + failed]
    except (ValueError, AttributeError, KeyError):
        return []


def spoilt_line(association: Association, chance: random.Random) -> bytes:
    """Another method, path or version."""
    head, body = stow(association)
    first, rest = head.split(b"\r\n", 1)
    method, path, protocol = first.split(b" ")
    match chance.randrange(3):
        case 0:
            method = chance.choice(METHODS)
        case 1:
            path = chance.choice((*PATHS, *TRICKS)).encode("latin-1")
        case _:
            protocol = chance.choice((b"HTTP/0.9", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"", b"SIP/2.0"))
    return whole(b" ".join((method, path, protocol)) + b"\r\n" + rest, body)


def spoilt_headers(association: Association, chance: random.Random) -> bytes:
    """Headers that are doubled, huge, many, or of no form."""
    head, body = stow(association)
    extra = chance.choice(
        (
            b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"Content-Length: -1\r\n", b"Host: evil\r\n",
            b"X: " + b"x" * chance.choice((1000, 40_000, 200_000)) + b"\r\n", b"X: y\r\n" * chance.choice((50, 5000)),
            b"no colon\r\n", b": empty\r\n", b"X: \0\r\n", b" folded\r\n", b"Content-Encoding: gzip\r\n",
            b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n", b"Accept: text/html\r\n",
            b"Cookie: hscc=" + chance.randbytes(30).hex().encode() + b"\r\n", b"Authorization: Bearer x\r\n",
            b"Range: bytes=0-\r\n", b"X-Forwarded-For: 127.0.0.1\r\n", b"Accept: " + b"a/b;q=0.1," * 900 + b"*/*\r\n",
        )
    )  # fmt: skip
    return whole(head + extra, body)


def spoilt_length(association: Association, chance: random.Random) -> bytes:
    """A body that is shorter or longer than announced, or chunks of no form."""
    head, body = stow(association)
    if chance.random() < 0.5:
        length = chance.choice((0, 1, len(body) // 2, len(body) - 1, len(body) + 1, 1 << 33, 1 << 64))
        return head + f"Content-Length: {length}\r\n\r\n".encode() + body
    chunk = chance.choice((b"zz", b"-1", b"ffffffffffffffff", b"%x" % len(body), b"%x;" % len(body) + b"e" * 9999, b""))
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"\r\n" + body + b"\r\n0\r\n\r\n"


def spoilt_multipart(association: Association, chance: random.Random) -> bytes:
    """Parts that do not end, begin too often, have spoilt headers, or are many."""
    head, body = stow(association)
    match chance.randrange(6):
        case 0:
            body = body[: chance.randrange(len(body))]
        case 1:
            body = b"--line\r\n\r\n" * chance.choice((2, 500)) + body
        case 2:
            spoilt = b"Content-Type" + b"x" * chance.choice((10, 9999)) + b": y"
            body = body.replace(b"Content-Type: application/dicom", spoilt)
        case 3:
            body = body.replace(b"application/dicom", chance.choice(KINDS))
        case 4:
            body = chance.randbytes(chance.choice((10, 5000))) + body
        case _:
            head = head.replace(b"boundary=line", chance.choice(BOUNDARIES))
    return whole(head, body)


def spoilt_file(association: Association, chance: random.Random) -> bytes:
    """A file that benchmarks/mutations.py has spoilt, in a request without fault."""
    kind = chance.choice(list(mutations.MUTATORS))
    return whole(*stow(association, mutations.MUTATORS[kind](association.file, chance)))


def spoilt_bits(association: Association, chance: random.Random) -> bytes:
    """Bits turned over in head and body, or the request cut off."""
    request = bytearray(whole(*stow(association)))
    for _ in range(chance.randint(1, 8)):
        request[chance.randrange(chance.choice((300, len(request))))] ^= 1 << chance.randrange(8)
    return bytes(request[: chance.randrange(len(request))] if chance.random() < 0.3 else request)


def odd_path(association: Association, chance: random.Random) -> bytes:
    """A page that is asked for in an odd way."""
    path = chance.choice((*PATHS, *TRICKS, "/" + chance.randbytes(8).hex(), "/studies/" + association.study))
    method = chance.choice(("GET", "GET", "HEAD", "POST", "OPTIONS"))
    host = chance.choice(("127.0.0.1", "127.0.0.1", "localhost", "evil.example", "127.0.0.1/x", "", "a" * 5000))
    form = chance.choice((b"", b"key=1&" * 500, b"name=" + b"n" * 100_000, chance.randbytes(40)))
    kind = chance.choice(FORMS)
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {len(form)}\r\n\r\n"
    return head.encode("latin-1", "replace") + (form if method == "POST" else b"")


MUTATORS: dict[str, Callable[[Association, random.Random], bytes]] = {
    "request line": spoilt_line, "headers": spoilt_headers, "length": spoilt_length, "multipart": spoilt_multipart,
    "file": spoilt_file, "bits": spoilt_bits, "path": odd_path,
}  # fmt: skip
ALLOWED = {"closed", "reset"} | {str(status) for status in (*range(200, 500), 501, 503, 505)}


def mutated(target: Target, count: int, seed: int, senders: int) -> Outcome:
    """Requests with one thing wrong: none may leave a connection open, raise an error within, or tell a secret."""
    names = list(MUTATORS)

    def one(number: int) -> str:
        chance = random.Random(f"{seed}/{number}")
        own = target.recorded.variant(5_000_000 + number)
        found = exchange(target.port, MUTATORS[names[number % len(names)]](own, chance))
        target.ledger.note(found, own.sop)
        return found.ending

    with ThreadPoolExecutor(senders) as pool:
        endings = Counter(pool.map(one, range(count)))
    return Outcome(count, endings, sum(number for ending, number in endings.items() if ending not in ALLOWED))


def dripped(target: Target, count: int) -> Outcome:
    """Slow-loris: heads and bodies that come byte by byte, and connections that say nothing."""
    head, body = stow(target.recorded.variant(5_900_000))
    streams = (head * 9, whole(head, body)[: len(head) + 24] + body * 2, b"")

    def one(number: int) -> str:
        began, stream = time.monotonic(), iter(streams[number % 3])
        try:
            with socket.create_connection(("127.0.0.1", target.port), source_address=(ATTACKER, 0)) as client:
                client.settimeout(0.25)
                if number % 3 == 1:
                    client.sendall(streams[1][: len(head) + 24])
                while time.monotonic() - began < target.cut_off_s:
                    client.sendall(bytes([byte]) if (byte := next(stream, None)) is not None else b"")
                    with suppress(TimeoutError):
                        if not client.recv(4096):
                            return "cut off"
        except OSError:
            return "cut off"
        return "left open"

    with ThreadPoolExecutor(count) as pool:
        endings = Counter(pool.map(one, range(count)))
    return Outcome(count, endings, endings["left open"])


def announced(target: Target, count: int) -> Outcome:
    """10 GB announced, and sent for as long as they are taken."""
    endings: Counter[str] = Counter()
    for _ in range(count):
        head, body = stow(target.recorded.variant(5_800_000))
        heard, taken = b"", 0
        with (
            suppress(OSError),
            socket.create_connection(
                ("127.0.0.1", target.port), timeout=LONGEST_S, source_address=(ATTACKER, 0)
            ) as client,
        ):
            client.sendall(head + f"Content-Length: {10 << 30}\r\n\r\n".encode() + body[: body.rindex(b"\r\n--line--")])
            client.setblocking(False)
            while taken < 10 << 30 and not heard:
                with suppress(BlockingIOError):
                    taken += client.send(bytes(1 << 20))
                with suppress(BlockingIOError):
                    heard = client.recv(65536)
                time.sleep(0.001)
        endings[_ending(bytearray(heard), "reset")] += 1
    return Outcome(count, endings, count - endings["413"] - endings["503"] - endings["reset"])


def sign_in_flood(target: Target, count: int) -> Outcome:
    """Guesses of a password: each is refused, and soon none is looked at any more."""
    endings: Counter[str] = Counter()
    with _browser(target.port, "127.0.0.3") as client:
        for number in range(count):
            form = {"name": target.account, "password": f"guess {number}", "csrf": _token(client)}
            endings[str(client.post("/sign-in", data=form).status_code)] += 1
    return Outcome(count, endings, count - endings["401"] - endings["429"] + (count > 60 and not endings["429"]))


def forged(target: Target, count: int) -> Outcome:
    """CSRF: an operator's browser is made to send forms by other sites, without token, or with another session's."""
    endings: Counter[str] = Counter()
    with _browser(target.port, "127.0.0.4") as operator, _browser(target.port, "127.0.0.4") as other:
        own = {"name": target.account, "password": target.password, "csrf": _token(operator)}
        endings[f"signed in: {operator.post('/sign-in', data=own).status_code}"] += 1
        stolen = _token(other)
        forms: Sequence[tuple[dict[str, str], dict[str, str]]] = (
            ({"name": ""}, {}), ({"csrf": "x"}, {}), ({"csrf": stolen}, {}),
            ({"csrf": _token(operator)}, {"Origin": "http://evil.example"}),
            ({"csrf": _token(operator)}, {"Sec-Fetch-Site": "cross-site"}),
        )  # fmt: skip
        for number in range(count):
            form, headers = forms[number % len(forms)]
            path = ("/outbox/redrive", "/models/roll-back", "/sign-out")[number % 3]
            endings[str(operator.post(path, data=form, headers=headers).status_code)] += 1
    return Outcome(count, endings, count - endings["403"] + (endings["signed in: 303"] != 1))


def _browser(port: int, address: str) -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport, trust_env=False, timeout=60)


def _token(client: httpx.Client) -> str:
    """What a page of this session's gives its forms."""
    found = re.search(r'name="csrf" value="([^"]+)"', client.get("/sign-in").text)
    return found[1] if found else ""


# The attack, and its tries where there are 10,000 mutated associations.
ATTACKS: dict[str, tuple[Callable[[Target, int], Outcome], int]] = {
    "slow-loris HTTP": (dripped, 30),
    "10 GB announced to STOW-RS": (announced, 3),
    "sign-in flood": (sign_in_flood, 200),
    "CSRF": (forged, 60),
}
