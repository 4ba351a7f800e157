"""Verbs of another machine's own hscc-edge, run over ssh on files that are sent along; their JSON comes back.

The system's OpenSSH client carries it, so that the user's configuration, known hosts, agent and jump hosts hold. One
connection does everything: the version is compared, a private directory made, the files unpacked and their SHA-256
checked, the verbs run, the directory removed.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from hscc_edge import __version__
from hscc_edge.bundle import Bundle
from hscc_edge.data.cache import file_digest
from hscc_edge.errors import GateError, InputError, RemoteError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
ADDRESS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9a-fA-F:]*:[0-9a-fA-F:.]*")
PROGRAM = "hscc-edge"
SUMS = "SHA256SUMS"
SSH = (
    "ssh", "-T", "-x", "-a", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oConnectTimeout=15",
    "-oServerAliveInterval=15", "-oServerAliveCountMax=4", "-oClearAllForwardings=yes", "-oPermitLocalCommand=no",
)  # fmt: skip
MARK = "\x1e"
# Exit codes of SCRIPT's own steps; a verb's own code is reported between marks, and the script then ends with 0.
ABSENT, OTHER, NO_PLACE, NOT_UNPACKED, ALTERED = range(90, 95)
SCRIPT = """\
program={program}
command -v "$program" >/dev/null || exit {ABSENT}
version=$("$program" --version </dev/null 2>/dev/null | head -n 1)
test "$version" = {version} || {{ printf '%s' "$version"; exit {OTHER}; }}
place=$(mktemp -d) || exit {NO_PLACE}
{trap}
cd "$place" || exit {NO_PLACE}
tar -xf - || exit {NOT_UNPACKED}
test ! -s {SUMS} || sha256sum --check --quiet --strict {SUMS} >&2 || exit {ALTERED}
printf '%s\\036' "$place"
run() {{ "$program" "$@" </dev/null 2>.messages; code=$?; printf '\\036%s\\036' $code; cat .messages; printf '\\036'; }}
"""
TRAP = "trap 'cd /; rm -rf \"$place\"' EXIT; trap 'exit 95' HUP INT TERM PIPE"


@dataclass(frozen=True, slots=True)
class Host:
    """Where to: `ssh://user@address:port/program`.

    Attributes:
        user, port: None where ssh's configuration chooses.
        program: its hscc-edge, an absolute path where PATH does not find it.
    """

    address: str
    user: str | None = None
    port: int | None = None
    program: str = PROGRAM

    def command(self) -> list[str]:
        """The words that ssh is started with, but for the remote script."""
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return [*SSH, *user, *port, "--", self.address]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one verb answered: its exit code, its JSON object (None if it gave none), its messages."""

    code: int
    content: dict[str, Any] | None
    messages: str

    @property
    def reason(self) -> str | None:
        """Why it did not do its work, in its own words; None if it did."""
        if self.code == 0 and self.content is not None:
            return None
        return _last_line(self.messages).removeprefix("error: ") or f"it ended with {self.code} and said nothing"


@dataclass(frozen=True, slots=True)
class Visit:
    """What a connection brought: one answer a verb, and the directory there, None if it was removed."""

    host: Host
    answers: tuple[Answer, ...]
    place: str | None

    def content(self, index: int) -> dict[str, Any]:
        """The JSON object of a verb that must have done its work.

        Raises:
            GateError: if it ended with 1.
            RemoteError: if it failed otherwise, with its own message.
        """
        answer = self.answers[index]
        if answer.content is not None and answer.reason is None:
            return answer.content
        kind = GateError if answer.code == 1 else RemoteError
        raise kind(f"on {self.host.address}: {answer.reason}")


def parse_host(url: str) -> Host:
    """The host that an ssh:// address names.

    Raises:
        InputError: if it is no such address, or holds a password.
    """
    wanted = "expected ssh://user@host, ssh://user@host:port, or with a path that names its hscc-edge"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"the address {url!r} cannot be read ({error}): {wanted}") from error
    if parts.password is not None:
        raise InputError("the ssh address holds a password: leave it out, and use a key or ssh-agent")
    address, user, path = parts.hostname or "", parts.username, parts.path.rstrip("/")
    sound = parts.scheme == "ssh" and ADDRESS.fullmatch(address) and not (parts.query or parts.fragment or port == 0)
    if not sound or (user is not None and not NAME.fullmatch(user)) or not path.isprintable():
        raise InputError(f"the address {url!r} is not one of a machine: {wanted}")
    return Host(address, user, port, path or PROGRAM)


def parcel(bundle: Bundle, names: Sequence[str], place: str = "bundle") -> dict[str, bytes]:
    """A bundle of fewer files: the configuration and `names`, under a manifest of their own; names below `place`.

    Raises:
        BundleError: if the bundle lacks one.
    """
    kept = sorted({name for name in bundle.files if name.startswith("configs/")} | set(names))
    content = {f"{place}/{name}": bundle.path(name).read_bytes() for name in kept}
    manifest = json.dumps({"files": {name: bundle.files[name] for name in kept}}, indent=2)
    return {**content, f"{place}/manifest.json": manifest.encode()}


def run_there(
    host: Host,
    files: Mapping[str, bytes | Path],
    verbs: Sequence[Sequence[str]],
    *,
    needed: int | None = None,
    keep: bool = False,
    patience_s: float = 3 * 3600.0,
) -> Visit:
    """Send `files` to a directory of their own on `host` and run verbs of its hscc-edge in it, one after another.

    Args:
        files: relative names and contents; paths of large ones, which are not read into memory.
        verbs: each the words of one verb, which is asked for `--json`.
        needed: how many of them, from the first, end the row if they fail; None for all.
        keep: leave the directory there.
        patience_s: for everything together.

    Raises:
        RemoteError: if ssh fails, the host has no hscc-edge or another version, or cannot hold the files.
    """
    script = _script(host, verbs, len(verbs) if needed is None else needed, keep)
    with tempfile.TemporaryFile() as parcelled:
        _pack(files, parcelled)
        parcelled.seek(0)
        try:
            done = subprocess.run(
                [*host.command(), shlex.join(["sh", "-c", script])],
                stdin=parcelled, capture_output=True, timeout=patience_s,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise RemoteError(
                "ssh is not installed: install OpenSSH's client (apt-get install openssh-client)"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise RemoteError(
                f"{host.address} gave no answer in {patience_s:.0f} s: see there whether hscc-edge still runs"
            ) from error
    output, messages = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if done.returncode != 0:
        raise RemoteError(_failure(host, done.returncode, output, messages))
    return _visit(host, output, keep)


def _script(host: Host, verbs: Sequence[Sequence[str]], needed: int, keep: bool) -> str:
    codes = {"ABSENT": ABSENT, "OTHER": OTHER, "NO_PLACE": NO_PLACE, "NOT_UNPACKED": NOT_UNPACKED, "ALTERED": ALTERED}
    start = SCRIPT.format(
        program=shlex.quote(host.program),
        version=shlex.quote(__version__),
        SUMS=SUMS,
        trap="" if keep else TRAP,
        **codes,
    )
    rows = [f"run {shlex.join([*verb, '--json'])}\n" for verb in verbs]
    ends = ["test $code = 0 || exit 0\n"] * needed + [""] * (len(verbs) - needed)
    return start + "".join(row + end for row, end in zip(rows, ends, strict=True)) + "exit 0\n"


def _pack(files: Mapping[str, bytes | Path], stream: IO[bytes]) -> None:
    sums = "".join(_sum(name, content) for name, content in files.items())
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in {**files, SUMS: sums.encode()}.items():
            entry = tarfile.TarInfo(name)
            entry.mode = 0o600
            with _stream(content) as source:
                entry.size = source.seek(0, io.SEEK_END)
                source.seek(0)
                archive.addfile(entry, source)


def _sum(name: str, content: bytes | Path) -> str:
    """A line of sha256sum's file; it escapes odd names, with a backslash before the line."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    digest = file_digest(content) if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def _stream(content: bytes | Path) -> IO[bytes]:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _visit(host: Host, output: str, keep: bool) -> Visit:
    """place MARK (stdout MARK code MARK stderr MARK)*"""
    place, *fields = output.split(MARK)[:-1]
    rows = zip(fields[0::3], fields[1::3], fields[2::3], strict=True)
    answers = tuple(Answer(int(code), _object(text), messages) for text, code, messages in rows)
    return Visit(host, answers, place if keep else None)


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object on the last line that holds one: a verb under it may have printed before."""
    try:
        found = json.loads(_last_line(text))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _failure(host: Host, code: int, output: str, messages: str) -> str:
    """One sentence from what ssh or the script said."""
    name, program = host.address, host.program
    if re.search(r"No space left on device|Disk quota exceeded", messages):
        return f"the disk of {name} is full: free space in its /tmp, or set TMPDIR there"
    match code:
        case 90:
            return (
                f"{name} finds no {program}: install hscc_edge there, or give its path, as in "
                f"ssh://{name}/opt/venv/bin/hscc-edge"
            )
        case 91:
            found = output.strip() or "older, or broken"
            return f"the hscc-edge of {name} is {found}, the one here {__version__}: install the same version on both"
        case 92:
            return f"{name} has no place for a directory ({_last_line(messages)}): mend its TMPDIR or /tmp"
        case 93:
            return f"{name} could not unpack the files ({_last_line(messages)}): mend that and try again"
        case 94:
            return f"the files arrived at {name} altered ({_last_line(messages)}): check its disk and try again"
        case 255:
            return _refusal(host, messages)
    return f"{name} ended with {code} ({_last_line(messages)}): run ssh {name} by hand and see"


REFUSALS = (
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED",
     "the host key of {name} is another than known_hosts has: make sure that it is still that machine, then forget the "
     "old key with ssh-keygen -R {name}"),
    (r"Host key verification failed|No \S+ host key is known",
     "the host key of {name} is not known here: connect once with ssh {name}, compare the fingerprint, and try again"),
    (r"Could not resolve hostname", "the name {name} is not known: check it, or give the address"),
    (r"Permission denied \(",
     "{name} refuses the login: give it your public key with ssh-copy-id, or start ssh-agent and add the key"),
    (r"Connection refused|timed out|No route to host|Network is unreachable|not responding",
     "{name} cannot be reached ({said}): see that it is on, and that sshd runs on that port"),
    (r"Connection \S*\s?(closed|reset)|Broken pipe|closed by remote host",
     "the connection to {name} broke ({said}): try again"),
)  # fmt: skip


def _refusal(host: Host, messages: str) -> str:
    said = _last_line(messages) or "it said nothing"
    for pattern, sentence in REFUSALS:
        if re.search(pattern, messages):
            return sentence.format(name=host.address, said=said)
    return f"ssh to {host.address} failed ({said}): run ssh {host.address} by hand and see"
