"""What a power cut leaves of a directory, from the diary of what was done to it (tools/faults.c).

The model: a file's bytes are safe from the end of an fsync of that file that began after they were written; a name is
safe from the end of an fsync of its directory that began after it was made, changed or removed. Everything else may be
there or not. A cut keeps, of the writes and the changes of names that are not safe,

- `none`: nothing; `all`: everything, as kill -9 does;
- `prefix`: of each file and of all names those up to some moment, as a journalling file system does;
- `any`: any, out of order, each write torn at 512-byte sectors, and a lost write that lengthened its file may leave
  zeros. A rename is one change, which is there or not.

After an fsync that failed, the bytes it was about are never safe (Linux forgets that they are to be written). What the
kernel never writes in order, SQLite's -shm, which it makes anew at the first opening, is left out.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from soak_faults import Entry

SECTOR = 512
MODES = ("none", "prefix", "any", "all")
LEFT_OUT = ("-shm",)
WRITTEN_ONCE = ("/spool/", "/models/")  # never opened for writing again, so that a link will do for a copy


@dataclass(slots=True)
class Change:
    """A write (`data` at `offset`) or a new length (`data` is None)."""

    offset: int
    data: bytes | None
    lost: bool = False


@dataclass(slots=True)
class Content:
    """One file: the bytes that are safe, and what was done since.

    Attributes:
        untouched: where the file lies, while nothing has been done to it; `safe` is then not read yet.
    """

    safe: bytearray = field(default_factory=bytearray)
    open: list[Change] = field(default_factory=list)
    untouched: Path | None = None

    def change(self, change: Change) -> None:
        """Note what is done to it."""
        self.read()
        self.open.append(change)

    def read(self) -> None:
        """Read it, if that was not done."""
        if self.untouched is not None:
            self.safe, self.untouched = bytearray(self.untouched.read_bytes()), None


@dataclass(slots=True)
class Names:
    """One directory: the entries that are safe, and changes since: (removed name, new name, what it stands for)."""

    safe: dict[str, Content] = field(default_factory=dict)
    now: dict[str, Content] = field(default_factory=dict)
    open: list[tuple[str | None, str | None, Content | None]] = field(default_factory=list)


class Volume:
    """A directory tree as its file system sees it: what is safe, and what would be lost."""

    def __init__(self, base: Path) -> None:
        """`base` is the tree when the diary began; all of it counts as safe."""
        self.folders: dict[str, Names] = {}
        self._syncs: dict[tuple[int, str], tuple[Content | Names, list[object]]] = {}
        for folder, _, files in os.walk(base):
            names = self.folders.setdefault(_below(base, Path(folder)), Names())
            for name in files:
                if not name.endswith(LEFT_OUT):
                    content = Content(untouched=Path(folder) / name)
                    names.safe[name] = names.now[name] = content

    def play(self, entries: Iterable[Entry]) -> None:
        """Let what the diary tells happen."""
        for entry in entries:
            if not entry.path.endswith(LEFT_OUT):
                DO[entry.op](self, entry)

    def _names(self, path: str) -> tuple[Names, str]:
        folder, _, name = path.rpartition("/")
        return self.folders.setdefault(folder, Names()), name

    def _content(self, path: str) -> Content:
        names, name = self._names(path)
        if name not in names.now:
            self._bind(names, name, Content())
        return names.now[name]

    def _bind(self, names: Names, name: str, content: Content) -> None:
        names.now[name] = content
        names.open.append((None, name, content))

    def create(self, entry: Entry) -> None:
        names, name = self._names(entry.path)
        if name not in names.now:
            self._bind(names, name, Content())

    def truncate(self, entry: Entry) -> None:
        self._content(entry.path).change(Change(entry.offset, None))

    def write(self, entry: Entry) -> None:
        if not entry.path.endswith(" (deleted)"):
            self._content(entry.path).change(Change(entry.offset, entry.data))

    def rename(self, entry: Entry) -> None:
        names, name = self._names(entry.path)
        others, other = self._names(entry.other)
        if entry.path in self.folders:  # a directory: moved with all that is in it, which counts as safe at once
            for path in [path for path in self.folders if path == entry.path or path.startswith(entry.path + "/")]:
                self.folders[entry.other + path[len(entry.path) :]] = self.folders.pop(path)
            return
        content = names.now.pop(name, None) or Content()
        others.now[other] = content
        if names is others:
            names.open.append((name, other, content))
        else:
            others.open.append((None, other, content))
            names.open.append((name, None, None))

    def link(self, entry: Entry) -> None:
        others, other = self._names(entry.other)
        self._bind(others, other, self._content(entry.path))

    def unlink(self, entry: Entry) -> None:
        names, name = self._names(entry.path)
        names.now.pop(name, None)
        names.open.append((name, None, None))

    def make_folder(self, entry: Entry) -> None:
        self.folders.setdefault(entry.path, Names())

    def remove_folder(self, entry: Entry) -> None:
        self.folders.pop(entry.path, None)

    def begin_sync(self, entry: Entry) -> None:
        if entry.path.endswith(" (deleted)"):
            return
        found = self.folders[entry.path] if entry.path in self.folders else self._content(entry.path)
        self._syncs[entry.thread, entry.path] = found, list(found.open)

    def end_sync(self, entry: Entry) -> None:
        found, done = self._syncs.pop((entry.thread, entry.path), (None, []))
        if isinstance(found, Content):
            for change in done:
                if isinstance(change, Change) and not change.lost:
                    _apply(found.safe, change)
        elif found is not None:
            for change in done:
                _rename(found.safe, change)
        if found is not None:
            kept = {id(change) for change in done}
            found.open[:] = [change for change in found.open if id(change) not in kept]

    def fail_sync(self, entry: Entry) -> None:
        if entry.path not in self.folders and not entry.path.endswith(" (deleted)"):
            for change in self._content(entry.path).open:
                change.lost = True

    def after_a_cut(self, mode: str, choice: random.Random) -> Iterator[tuple[str, bytes | Path | None]]:
        """(path, content or where to find it) of every file that is there afterwards, (path, None) of every folder."""
        made: dict[int, bytes | Path] = {}
        for folder, names in self.folders.items():
            yield folder, None
            left = dict(names.safe)
            for change in _kept(names.open, mode, choice):
                _rename(left, change)
            for name, content in left.items():
                if id(content) not in made:
                    made[id(content)] = content.untouched or _after(content, mode, choice)
                yield f"{folder}/{name}", made[id(content)]


DO = {
    "c": Volume.create, "t": Volume.truncate, "w": Volume.write, "r": Volume.rename, "l": Volume.link,
    "u": Volume.unlink, "m": Volume.make_folder, "d": Volume.remove_folder, "B": Volume.begin_sync,
    "E": Volume.end_sync, "F": Volume.fail_sync,
}  # fmt: skip


def cut(volume: Volume, target: Path, mode: str, choice: random.Random) -> None:
    """Make `target` what a power cut leaves of the volume."""
    if target.exists():
        shutil.rmtree(target)
    for path, content in volume.after_a_cut(mode, choice):
        place = target / path.lstrip("/")
        (place if content is None else place.parent).mkdir(mode=0o700, parents=True, exist_ok=True)
        if isinstance(content, Path):
            if path.startswith(WRITTEN_ONCE):
                os.link(content, place)
            else:
                shutil.copyfile(content, place)
        elif content is not None:
            place.write_bytes(content)


def _below(base: Path, path: Path) -> str:
    return "" if path == base else "/" + str(path.relative_to(base))


def _kept(changes: list, mode: str, choice: random.Random) -> list:
    if mode == "none":
        return []
    if mode == "prefix":
        return changes[: choice.randint(0, len(changes))]
    if mode == "any":
        return [change for change in changes if choice.random() < 0.5]
    return changes


def _after(content: Content, mode: str, choice: random.Random) -> bytes:
    left = bytearray(content.safe)
    kept = {id(change) for change in _kept(content.open, mode, choice)}
    for change in content.open:
        if change.lost and mode != "all":
            continue
        if id(change) in kept:
            _apply(left, change, choice if mode == "any" and choice.random() < 0.5 else None)
        elif mode == "any" and change.data is not None and choice.random() < 0.3:
            end = change.offset + len(change.data)
            left.extend(bytes(max(0, end - len(left))))
    return bytes(left)


def _apply(target: bytearray, change: Change, torn: random.Random | None = None) -> None:
    if change.data is None:
        del target[change.offset :]
        target.extend(bytes(max(0, change.offset - len(target))))
        return
    end = change.offset + len(change.data)
    target.extend(bytes(max(0, end - len(target))))
    position = change.offset
    while position < end:
        stop = min(end, position - position % SECTOR + SECTOR)
        if torn is None or torn.random() < 0.5:
            target[position:stop] = change.data[position - change.offset : stop - change.offset]
        position = stop


def _rename(names: dict[str, Content], change: tuple[str | None, str | None, Content | None]) -> None:
    old, new, content = change
    if old is not None:
        names.pop(old, None)
    if new is not None and content is not None:
        names[new] = content
