"""A disk that fails on demand and keeps a diary, for a daemon that is started with it: tools/faults.c, preloaded."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "tools" / "faults.c"
OPERATIONS = {"create": 1, "write": 2, "sync": 4, "rename": 8, "truncate": 16, "remove": 32, "mkdir": 64}
ALL = sum(OPERATIONS.values())
CONTROL = struct.Struct("<qqqQI7i")
HEADER = struct.Struct("<B3xIqqIIIxxxx")
FOREVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the diary: what was done to which file below the root.

    Attributes:
        op: c(reate), t(runcate), w(rite), B(egin of fsync), E(nd of it), F(ailed fsync), r(ename), l(ink), u(nlink),
            m(kdir), d(rmdir).
        at: seconds of the monotonic clock, when it was done.
        path: below the root, with a leading slash; `other` is the new name of a rename or link.
    """

    op: str
    thread: int
    at: float
    offset: int
    path: str
    other: str
    data: bytes


def build(folder: Path) -> Path:
    """Compile the shim into a folder with the machine's own cc, once; returns the library."""
    library = folder / "faults.so"
    if not library.exists():
        draft = folder / f"faults.{os.getpid()}.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(draft), str(SOURCE)], check=True)
        draft.rename(library)
    return library


class Disk:
    """The control file of one state directory's faults, shared with all that was started with `environment`."""

    def __init__(self, folder: Path, root: Path, library: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.root = folder, root.resolve()
        self.environment = {
            "LD_PRELOAD": str(library), "HSCC_FAULTS": str(folder), "HSCC_FAULTS_ROOT": str(self.root),
        }  # fmt: skip
        path = folder / "control"
        path.write_bytes(bytes(mmap.PAGESIZE))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    def _fields(self) -> list[int]:
        return list(CONTROL.unpack_from(self._shared))

    def arm(
        self, error: int, *, call: int = 1, chance: float = 0.0, operations: int = ALL, lasting: bool = False,
        shorten: bool = False, seed: int = 0,
    ) -> None:  # fmt: skip
        """Let the `call`-th of these operations fail (and all later ones if `lasting`), or each with a probability.

        `shorten`: a write that is to fail writes half of its bytes and says so, as write(2) may.
        """
        self.heal()
        fields = self._fields()
        diary, lie = fields[10], fields[11]
        values = [call, 0, 0, seed, int(chance * 0xFFFFFFFF), 0, operations, error, lasting, shorten, diary, lie]
        CONTROL.pack_into(self._shared, 0, *values)
        self._set(5, 1)

    def heal(self) -> tuple[int, int]:
        """The disk is well again; (calls that were at risk, calls that failed) since it was armed."""
        self._set(5, 0)
        fields = self._fields()
        return fields[1], fields[2]

    def wait_for_hit(self, seconds: float) -> bool:
        """Whether a call has failed since `arm`, or does within that time."""
        deadline = time.monotonic() + seconds
        while not self._fields()[2]:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def record(self, on: bool) -> None:
        """Write the diary from now on, anew, or stop."""
        if on:
            (self.folder / "diary").write_bytes(b"")
        self._set(10, int(on))

    def lie(self, on: bool) -> None:
        """Let fsync report success without doing anything: what a test of the checker itself needs."""
        self._set(11, int(on))

    def _set(self, field: int, value: int) -> None:
        struct.pack_into("<i", self._shared, 36 + 4 * (field - 5), value)

    def hits(self) -> Counter[str]:
        """Failed calls by operation and kind of file, since the beginning."""
        path = self.folder / "hits"
        return Counter(place(line) for line in path.read_text().splitlines()) if path.exists() else Counter()

    def diary(self) -> Iterator[Entry]:
        """What was recorded; an entry that a kill cut off at the end is left out."""
        content = (self.folder / "diary").read_bytes()
        start = 0
        while start + HEADER.size <= len(content):
            op, thread, at, offset, *sizes = HEADER.unpack_from(content, start)
            start += HEADER.size
            if start + sum(sizes) > len(content):
                return
            parts = []
            for size in sizes:
                parts.append(content[start : start + size])
                start += size
            yield Entry(chr(op), thread, at / 1e9, offset, parts[0].decode(), parts[1].decode(), parts[2])


def place(line: str) -> str:
    """A line of `hits` without what differs from file to file: `write journal.sqlite-wal`, `rename spool/*.part`."""
    operation, _, path = line.partition(" ")
    parts = [part for part in path.split("/") if part]
    if not parts:
        return f"{operation} ."
    parts = [part if before != "drafts" else "*" for before, part in zip(["", *parts], parts, strict=False)]
    name = parts[-1]
    if name.startswith(".") or len(Path(name).stem) >= 32:
        head, tail = (".", name[1:].rsplit(".", 1)[0]) if name.startswith(".") else ("", "".join(Path(name).suffixes))
        name = f"{head}{tail}.*" if head else f"*{tail}"
    return f"{operation} {'/'.join([*parts[:-1], name])}"


def merged(counts: Iterator[Mapping[str, int]]) -> dict[str, int]:
    """The sum of several counts, largest first."""
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total.most_common())
