"""Attacks on the DICOM port: each returns how its tries ended, and what it was told of which instance."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from pdu_mutations import (
    ABORT,
    ASSOCIATE_AC,
    ASSOCIATE_RJ,
    P_DATA,
    RELEASE_RP,
    RELEASE_RQ,
    Association,
    fragment,
    mutants,
    pdu,
    split,
)

ATTACKER = "127.0.0.2"  # so that limits for one address do not meet the sender that is served beside
PATIENCE_S = 1.5
LONGEST_S = 20.0
NAMES = {ASSOCIATE_AC: "accepted", ASSOCIATE_RJ: "rejected", RELEASE_RP: "released", ABORT: "aborted"}


@dataclass(slots=True)
class Ledger:
    """What the daemon said of instances: SOP Instance UIDs."""

    acknowledged: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, found: Found, sent: str | None = None) -> None:
        """Take an exchange's answers; one that broke off without any may have kept what was sent."""
        with self.lock:
            for sop, status in found.statuses:
                (self.acknowledged if status == 0 or status & 0xF000 == 0xB000 else self.refused).add(sop)
            if sent is not None and not found.statuses:
                self.unanswered.add(sent)


@dataclass(frozen=True, slots=True)
class Found:
    """How an exchange went: the kinds of PDUs that came back, (SOP Instance UID, status) of each answer."""

    ending: str
    statuses: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """An attack's tries by how they ended, and how many of them went otherwise than they must."""

    tries: int
    endings: Counter[str]
    wrong: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """What is attacked.

    Attributes:
        idle_s: after which a silent peer is to be cut off.
    """

    port: int
    recorded: Association
    ledger: Ledger
    idle_s: float


def connect(port: int) -> socket.socket:
    """From the attackers' address."""
    return socket.create_connection(("127.0.0.1", port), timeout=LONGEST_S, source_address=(ATTACKER, 0))


def exchange(port: int, pdus: Sequence[bytes]) -> Found:
    """Send the first PDU, wait for an answer, send the others, wait, release, read to the end."""
    heard = bytearray()
    try:
        with connect(port) as client:
            client.sendall(pdus[0])
            ended = _hear(client, heard, PATIENCE_S)
            if not ended and heard[:1] == bytes([ASSOCIATE_AC]):
                rest = [item for item in pdus[1:] if item[:1] != bytes([RELEASE_RQ])]
                client.sendall(b"".join(rest))
                ended = _hear(client, heard, PATIENCE_S)
                with suppress(OSError):
                    client.sendall(pdu(RELEASE_RQ, bytes(4)))
            with suppress(OSError):
                client.shutdown(socket.SHUT_WR)
            while not ended:
                ended = _hear(client, heard, LONGEST_S)
    except TimeoutError:
        return Found("left open", tuple(_statuses(heard)))
    except OSError:
        return Found("reset", tuple(_statuses(heard)))
    return Found(_ending(heard), tuple(_statuses(heard)))


def _hear(client: socket.socket, heard: bytearray, seconds: float) -> bool:
    """Take what comes next; True at the end of the stream. A silence of LONGEST_S is an error, a shorter one none."""
    client.settimeout(seconds)
    try:
        piece = client.recv(65536)
    except TimeoutError:
        if seconds >= LONGEST_S:
            raise
        return False
    heard += piece
    return not piece


def _ending(heard: bytearray) -> str:
    kinds = [item[0] for item in split(bytes(heard))]
    return NAMES.get(kinds[-1], "answered") if kinds else "closed"


def _statuses(heard: bytearray) -> Iterable[tuple[str, int]]:
    """(Affected SOP Instance UID, Status) of the responses in what a provider sent."""
    for item in split(bytes(heard)):
        if item[0] != P_DATA or len(item) < 12:
            continue
        command, at, values = item[12:], 0, {}
        while at + 8 <= len(command):
            element, length = struct.unpack_from("<2xHI", command, at)
            values[element] = command[at + 8 : at + 8 + length]
            at += 8 + length
        if 0x0900 in values:
            sop = values.get(0x1000, b"").rstrip(b"\0 ").decode("latin-1")
            yield sop, int.from_bytes(values[0x0900], "little")


def mutated(target: Target, count: int, seed: int, senders: int) -> Outcome:
    """Recorded associations with one thing wrong; whatever comes back must come, and the connection must end."""
    endings: Counter[str] = Counter()

    def one(item: tuple[str, Association]) -> str:
        found = exchange(target.port, item[1].pdus)
        target.ledger.note(found, item[1].sop)
        return found.ending

    with ThreadPoolExecutor(senders) as pool:
        endings.update(pool.map(one, mutants(target.recorded, count, seed)))
    return Outcome(count, endings, endings["left open"])


def replayed(target: Target, count: int) -> Outcome:
    """One recorded association again and again: acknowledged each time, kept once."""
    own = target.recorded.variant(9_000_001)
    endings: Counter[str] = Counter()
    for _ in range(count):
        found = exchange(target.port, own.pdus)
        target.ledger.note(found, own.sop)
        endings[f"{found.statuses[0][1]:#06x}" if found.statuses else found.ending] += 1
    return Outcome(count, endings, count - endings["0x0000"])


def dripped(target: Target, count: int) -> Outcome:
    """Slow-loris: PDUs that come byte by byte, before and after the association is accepted."""
    endings: Counter[str] = Counter()
    request, data = target.recorded.pdus[:2]

    def one(number: int) -> str:
        try:
            with connect(target.port) as client:
                if number % 2:
                    client.sendall(request)
                    if client.recv(6)[:1] != bytes([ASSOCIATE_AC]):
                        return "rejected"
                return _drip(client, data if number % 2 else request, 6 * target.idle_s)
        except OSError:
            return "cut off"

    with ThreadPoolExecutor(count) as pool:
        endings.update(pool.map(one, range(count)))
    return Outcome(count, endings, endings["left open"])


def _drip(client: socket.socket, content: bytes, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    client.settimeout(0.2)
    for byte in content:
        if time.monotonic() > deadline:
            return "left open"
        client.sendall(bytes([byte]))
        try:
            while client.recv(4096):
                pass
            return "cut off"
        except TimeoutError:
            pass
    return "all taken"


def half_open(target: Target, count: int) -> Outcome:
    """Connections on which nothing is ever sent: each must be cut off after the idle time."""
    clients: list[socket.socket] = []
    endings: Counter[str] = Counter()
    for _ in range(count):
        try:
            clients.append(connect(target.port))
        except OSError:
            endings["not accepted"] += 1
    deadline = time.monotonic() + 10 * target.idle_s + 20
    for client in clients:
        client.settimeout(max(0.05, deadline - time.monotonic()))
        try:
            while client.recv(4096):
                pass
            endings["cut off"] += 1
        except TimeoutError:
            endings["left open"] += 1
        except OSError:
            endings["cut off"] += 1
        client.close()
    return Outcome(count, endings, endings["left open"])


def announced(target: Target, count: int) -> Outcome:
    """PDUs that say they are 4 GB long, as the first and as a later one, and a few MB of them."""
    endings: Counter[str] = Counter()
    request = target.recorded.pdus[0]
    for number in range(count):
        kind = P_DATA if number % 2 else request[0]
        try:
            with connect(target.port) as client:
                if number % 2:
                    client.sendall(request)
                    client.recv(65536)
                client.sendall(pdu(kind, b"", 0xFFFFFFFF))
                endings[_pour(client, bytes(65536), 64 << 20)[0]] += 1
        except OSError:
            endings["cut off"] += 1
    return Outcome(count, endings, endings["all taken"])


def endless(target: Target, count: int) -> Outcome:
    """An object of 10 GB, fragment by fragment: cut off long before, whatever of it is read meanwhile."""
    endings: Counter[str] = Counter()
    for number in range(count):
        own = target.recorded.variant(9_100_000 + number)
        context = own.pdus[1][10]
        try:
            with connect(target.port) as client:
                client.sendall(own.pdus[0])
                client.recv(65536)
                client.sendall(own.pdus[1] + pdu(P_DATA, fragment(context, 0, own.pdus[2][12:])))
                ending, _ = _pour(client, pdu(P_DATA, fragment(context, 0, bytes(16_000))), 10 << 30)
        except OSError:
            ending = "cut off"
        endings[ending] += 1
    return Outcome(count, endings, endings["all taken"])


def _pour(client: socket.socket, piece: bytes, most: int) -> tuple[str, int]:
    """Send a piece over and over until the peer answers, closes, or has taken so many bytes."""
    taken = 0
    client.settimeout(LONGEST_S)
    with suppress(OSError):
        while taken < most:
            client.sendall(piece)
            taken += len(piece)
        return "all taken", taken
    return "cut off", taken


def wrong_titles(target: Target, count: int) -> Outcome:
    """Associations to an AE title that is not ours: rejected, with the reason of PS3.8 table 9-21."""
    request = bytearray(target.recorded.pdus[0])
    request[10:26] = b"SOMEBODY_ELSE".ljust(16)
    endings: Counter[str] = Counter()
    for _ in range(count):
        try:
            with connect(target.port) as client:
                client.sendall(request)
                answer = client.recv(65536)
        except OSError:
            answer = b""
        endings[f"rejected, reason {answer[9]}" if answer[:1] == bytes([ASSOCIATE_RJ]) else "other"] += 1
    return Outcome(count, endings, count - endings["rejected, reason 7"])


def flood(target: Target, count: int) -> Outcome:
    """As many associations at once as the peer likes; those beyond the limit are rejected, none is left waiting."""
    endings: Counter[str] = Counter()
    clients: list[socket.socket] = []
    for _ in range(count):
        with suppress(OSError):
            client = connect(target.port)
            clients.append(client)
            client.sendall(target.recorded.pdus[0])
    for client in clients:
        try:
            kind = client.recv(1)
            endings[NAMES.get(kind[0], "other") if kind else "closed"] += 1
        except TimeoutError:
            endings["left open"] += 1
        except OSError:
            endings["closed"] += 1
    for client in clients:
        client.close()
    return Outcome(count, endings, endings["left open"])


# The attack, and its tries where there are 10,000 mutated associations.
ATTACKS: dict[str, tuple[Callable[[Target, int], Outcome], int]] = {
    "replay of a recorded association": (replayed, 100),
    "slow-loris PDUs": (dripped, 32),
    "half-open connections": (half_open, 1000),
    "a PDU of 4 GB announced": (announced, 20),
    "an object of 10 GB": (endless, 4),
    "wrong called AE title": (wrong_titles, 100),
    "flood of associations": (flood, 300),
}
