"""Who did what: lines that are only ever added, each bound to the one before by a keyed MAC.

A line is a JSON object whose last member is `mac`: HMAC-SHA256 (RFC 2104) over the MAC of the line before and the bytes
of this line up to it, under a key that HKDF (RFC 5869) derives from the station's. So a changed, removed, inserted or
reordered line breaks the chain. That the last lines were cut off is told by the journal, which knows the newest MAC.
No identifier is in it but keyed hashes. Who holds the station's key can write another chain: what must be believed
against the machine's own administrator goes to an audit repository (`atna`).
"""

from __future__ import annotations

import errno
import fcntl
import hmac
import json
import logging
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from itertools import pairwise
from pathlib import Path

from hscc_edge import durable
from hscc_edge.errors import StorageError, extra
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.station import Station

LOG = logging.getLogger(__name__)
NAME = "audit.jsonl"
FULL_BYTES = 64 << 20
LONGEST = 64 << 10
# What happens many times a second is on disk with the next `seal`, everything else at once.
FREQUENT = frozenset({"association-accepted", "association-refused", "study-received", "report-sent"})
MAC = re.compile(rb',"mac":"([0-9a-f]{64})"}\Z')
UID = re.compile(r"[0-2](\.\d+){4,}")
FIRST = "0" * 64


@dataclass(frozen=True, slots=True)
class Line:
    """One whole line; `faults` says what is wrong with it."""

    file: str
    seq: int
    time: str
    action: str
    facts: dict[str, object]
    mac: str
    faults: tuple[str, ...] = ()


def audit(station: Station, action: str, **facts: object) -> int:
    """Add a line; returns its sequence number. Its cost does not grow with the file.

    Call it outside of journal transactions: processes wait for one another here.

    Args:
        facts: plain values without identifiers; a text in the form of a UID becomes its keyed hash.

    Raises:
        StorageError: if it cannot be written.
    """
    path, key = station.config.state / NAME, chain_key(station.key)
    clean = {name: _clean(station, value) for name, value in facts.items()}
    with durable.storage(path):
        handle = _open(path)
        try:
            seq, mac = _last(path, handle)
            if os.fstat(handle).st_size > FULL_BYTES:
                handle = _put_aside(path, handle, seq)
                seq, mac = _last(path, handle)  # another process may have been first to write into the new file
            body = _body(seq + 1, action, clean)
            line = body + f',"mac":"{bind(key, mac, body)}"}}\n'.encode()
            _append(handle, line)
            if action not in FREQUENT:
                os.fsync(handle)
        finally:
            os.close(handle)
    return seq + 1


def seal(station: Station, journal: Journal) -> int:
    """Bring every line to disk and tell the journal which is the last; returns its sequence number.

    Before that it looks whether the line that the journal knew is still there; that it was not is kept in the journal.
    """
    path = station.config.state / NAME
    known = head(journal, station.key)
    if known is None and not path.exists():
        return 0
    with durable.storage(path):
        handle = _open(path)
        try:
            (seq, mac), end = _last(path, handle), os.fstat(handle).st_size
            there = known is None or any(_ends_with(file, known) for file in _since(station.config.state, known.seq))
            if known is None or seq > known.seq:
                os.fsync(handle)
        finally:
            os.close(handle)
    if known is not None and not there and journal.fact("audit_broken") is None:
        journal.set_fact("audit_broken", f"line {max(known.seq, 0)}, found {datetime.now(timezone.utc):%Y-%m-%d %H:%M}")
        LOG.error("event=audit_broken line=%d", known.seq)
        audit(station, "audit-broken", line=known.seq)
    if seq and (known is None or seq > known.seq or not there):
        text = f"{seq} {mac} {end}"
        journal.set_fact("audit_head", f"{text} {_head_mac(station.key, text)}")
    return seq


def mend(station: Station, journal: Journal) -> int:
    """Cut off what a power loss left of lines that were not on disk yet; returns how many bytes, and adds a line on it.

    Only lines after the last that the journal knows may go: from the first that does not follow the one before it.
    Call it before anything is added.
    """
    path, key = station.config.state / NAME, chain_key(station.key)
    known = head(journal, station.key)
    if not path.exists() or (known is not None and known.seq < 0):
        return 0
    with durable.storage(path):
        handle = _open(path)
        try:
            end, size = _whole_until(path, key, known), os.fstat(handle).st_size
            if end is None or end >= size:
                return 0
            os.ftruncate(handle, end)
            os.fsync(handle)
        finally:
            os.close(handle)
    LOG.warning("event=audit_mended bytes=%d", size - end)
    audit(station, "audit-tail-lost", bytes=size - end)
    return size - end


def _whole_until(path: Path, key: bytes, known: Head | None) -> int | None:
    """Where the newest file's unbroken lines end; None if what the journal knows is not there."""
    end, seq, mac = 0, 0, FIRST
    aside = files(path.parent)[:-1]
    if known is not None and known.end and _ends_with(path, known):
        end, seq, mac = known.end, known.seq, known.mac
    elif aside:
        with aside[-1].open("rb") as file:
            file.seek(max(0, aside[-1].stat().st_size - LONGEST))
            seq, mac = _ending((file.read().splitlines() or [b""])[-1])
    elif known is not None:
        return None
    with path.open("rb") as file:
        file.seek(end)
        while raw := file.readline(LONGEST):
            line = _read(path.name, raw, key, mac, seq)
            if line.faults:
                break
            end, seq, mac = file.tell(), line.seq, line.mac
    return end


@dataclass(frozen=True, slots=True)
class Head:
    """The last line that the journal knows, and where in its file it ends; seq -1 if that record was forged."""

    seq: int
    mac: str
    end: int


def head(journal: Journal, key: bytes) -> Head | None:
    """The journal's record of the chain's end."""
    record = journal.fact("audit_head")
    if record is None:
        return None
    text, _, proof = record.rpartition(" ")
    if not hmac.compare_digest(proof, _head_mac(key, text)):
        return Head(-1, "", 0)
    seq, mac, end = text.split(" ")
    return Head(int(seq), mac, int(end))


def _since(state: Path, seq: int) -> list[Path]:
    """The files in which a line may be: the newest, and those that were put aside after it was written."""
    return [path for path in files(state) if path.name == NAME or int(path.stem.partition("-")[2]) >= seq]


def _ends_with(path: Path, known: Head) -> bool:
    end = known.end or path.stat().st_size  # 0: it was the last of a file that had just been put aside
    with path.open("rb") as file:
        file.seek(max(0, end - LONGEST))
        lines = file.read(min(end, LONGEST)).splitlines()
    return bool(lines) and _ending(lines[-1]) == (known.seq, known.mac)


@cache
def chain_key(key: bytes) -> bytes:
    """The chain's key, from the station's."""
    with extra("device"):
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    return bytes(HKDF(SHA256(), 32, salt=None, info=b"hscc-edge audit chain").derive(key))


def bind(key: bytes, before: str, body: bytes) -> str:
    """The MAC of a line."""
    return hmac.new(key, before.encode() + body, "sha256").hexdigest()


def files(state: Path) -> list[Path]:
    """The chain's files, oldest first."""
    aside = sorted(state.glob("audit-*.jsonl"))
    return [*aside, *([state / NAME] if (state / NAME).exists() else [])]


def read(state: Path, key: bytes) -> Iterator[Line]:
    """Every line, oldest first, with its faults; memory does not grow with the files."""
    secret, mac, seq = chain_key(key), FIRST, 0
    for path in files(state):
        with path.open("rb") as file:
            while raw := file.readline(LONGEST):
                line = _read(path.name, raw, secret, mac, seq)
                yield line
                mac, seq = line.mac, line.seq


def tail(state: Path, key: bytes, most: int) -> list[Line]:
    """The last lines of the newest file, oldest first, each compared with the one before; at most `LONGEST` bytes."""
    try:
        with (state / NAME).open("rb") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - LONGEST)
            file.seek(begin)
            lines = file.read(LONGEST).splitlines(keepends=True)
    except FileNotFoundError:
        return []
    lines = lines[1 if begin else 0 :]
    found: list[Line] = []
    for before, raw in pairwise(lines):
        ends = MAC.search(before.rstrip(b"\n"))
        mac = ends[1].decode() if ends else FIRST
        seq = found[-1].seq if found else _read(NAME, before, chain_key(key), FIRST, 0).seq
        found.append(_read(NAME, raw, chain_key(key), mac, seq))
    if not begin and lines and len(files(state)) == 1:
        found.insert(0, _read(NAME, lines[0], chain_key(key), FIRST, 0))
    return found[-most:]


def verify(state: Path, key: bytes, journal: Journal, most: int = 100) -> tuple[int, list[str]]:
    """(lines read, what is wrong): compares every line with the one before, and the last ones with the journal."""
    known, broken = head(journal, key), journal.fact("audit_broken")
    number, faults, seen = 0, [f"{broken}: it was missing or changed" for _ in range(broken is not None)], False
    for line in read(state, key):
        number += 1
        seen = seen or (known is not None and (known.seq, known.mac) == (line.seq, line.mac))
        faults += [f"{line.file}, line {line.seq}: {fault}" for fault in line.faults]
    if known is None and number:
        faults.append("the journal does not know its last line: was its record removed?")
    elif known is not None and known.seq < 0:
        faults.append("the journal's record of its last line was changed")
    elif known is not None and not seen:
        faults.append(f"line {known.seq}, which the journal knows, is not there: the end was cut off or replaced")
    return number, faults[:most]


def follow(state: Path, seq: int, end: int, upto: int, limit: int = 1000) -> tuple[list[Line], int, int]:
    """(lines after `seq`, the last one's number, where in its file it ends), unverified, for one who goes on reading.

    Args:
        end: where the line `seq` ends in its file; 0 to begin.
        upto: no line after this one; those that the journal knows are on disk and stay what they are.
    """
    found: list[Line] = []
    start = end
    for path in _since(state, seq):
        with path.open("rb") as file:
            file.seek(start)
            while len(found) < limit and (raw := file.readline(LONGEST)).endswith(b"\n"):
                line = _parse(path.name, raw)
                number = line.seq if line else seq + 1
                if number > upto:
                    return found, seq, end
                seq, end = number, file.tell()
                found += [line] if line else []
        start = 0
    return found, seq, end


def _read(name: str, raw: bytes, key: bytes, before: str, seq: int) -> Line:
    ends = MAC.search(raw.rstrip(b"\n")) if raw.endswith(b"\n") and raw.count(b"\n") == 1 else None
    line = _parse(name, raw)
    if line is None:
        return Line(name, seq + 1, "", "", {}, FIRST, ("it is no line of the chain",))
    mac = ends[1].decode() if ends else FIRST
    faults = []
    if line.seq != seq + 1:
        faults.append(f"it follows line {seq}")
    if not ends or not hmac.compare_digest(bind(key, before, raw[: ends.start()]), mac):
        faults.append("it, or the line before it, is not what was written")
    return Line(name, line.seq, line.time, line.action, line.facts, mac, tuple(faults))


def _parse(name: str, raw: bytes) -> Line | None:
    try:
        content = json.loads(raw)
        facts = dict(content["facts"])
        return Line(name, int(content["seq"]), str(content["time"]), str(content["action"]), facts, "")
    except (ValueError, KeyError, TypeError):
        return None


def _clean(station: Station, value: object) -> object:
    if isinstance(value, bool | int) or value is None or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = str(value)
    return station.who(text) if UID.fullmatch(text) else text[:1024]


def _body(seq: int, action: str, facts: dict[str, object]) -> bytes:
    moment = datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="milliseconds")
    content = {"seq": seq, "time": moment, "action": action, "facts": facts}
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > LONGEST // 2:
        raise StorageError(f"an audit line of {len(body)} bytes is too long: expected at most {LONGEST // 2}")
    return body[:-1]


def _open(path: Path) -> int:
    """The newest file, locked: another process may have put it aside while this one waited."""
    while True:
        fresh = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                if fresh:
                    durable.sync_directory(path.parent)
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)


def _last(path: Path, handle: int) -> tuple[int, str]:
    """(sequence number, MAC) of the last whole line; a part of one that a power loss left is cut off."""
    whole = 0
    while not whole and (size := os.fstat(handle).st_size):
        tail = os.pread(handle, LONGEST, max(0, size - LONGEST))
        whole = tail.rfind(b"\n") + 1
        if whole < len(tail):
            os.ftruncate(handle, size - (len(tail) - whole))
    if whole and (lines := tail[:whole].splitlines()):
        return _ending(lines[-1])
    for earlier in reversed(files(path.parent)[:-1]):
        with earlier.open("rb") as file:
            file.seek(max(0, earlier.stat().st_size - LONGEST))
            if lines := file.read().splitlines():
                return _ending(lines[-1])
    return 0, FIRST


def _append(handle: int, line: bytes) -> None:
    """All of a line, or, where the disk takes only a part, nothing of it."""
    size = os.fstat(handle).st_size
    if os.write(handle, line) < len(line):
        os.ftruncate(handle, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _ending(line: bytes) -> tuple[int, str]:
    """What the next line follows; a line that someone has spoilt is followed too, and `verify` finds it."""
    ends, number = MAC.search(line), re.match(rb'\{"seq":(\d{1,18}),', line)
    return int(number[1]) if number else 0, ends[1].decode() if ends else FIRST


def _put_aside(path: Path, handle: int, seq: int) -> int:
    """Begin a new file; the chain goes on in it."""
    os.fsync(handle)
    os.rename(path, path.with_name(f"audit-{seq:012d}.jsonl"))
    os.close(handle)
    return _open(path)


def _head_mac(key: bytes, text: str) -> str:
    return bind(chain_key(key), "head", text.encode())
