"""The index of a folder: an SQLite file with one row for each file, kept up to date by `scan`.

It holds identifiers as the files do, and is as confidential as they are: its mode is 0600. Names of files may identify
patients too, and need not be text: they are kept as bytes. A commit survives a power loss; an index whose scan was cut
off says so, and is not read from before the scan is run again.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from hscc_edge.data.facts import Facts
from hscc_edge.errors import InputError, StorageError

IMAGE, OBJECT, DICOMDIR, FAULT, LINK = "image", "object", "dicomdir", "fault", "symbolic link"
DICOM = (IMAGE, OBJECT, DICOMDIR)
VERSION = 1  # of the tables and of what `facts_of` finds
APPLICATION = 0x48534958
DRAFTS = ("-journal", "-wal", "-shm")


@dataclass(frozen=True, slots=True)
class Row:
    """One file; names and identifiers stay out of its repr.

    Attributes:
        path: relative to the scanned folder, decoded as `os.fsdecode` does.
        mtime_ns: of the file as it was read; -1 if it could not be opened, so that the next scan tries again.
        kind: image (has pixels), object (DICOM without pixels), dicomdir, fault, or what else the file is.
        digest: sha256 of the file; None if none was asked for, or the file is not DICOM.
        fault: one sentence on why the file cannot be used; it names neither file nor patient.
        sop_class: SOP Class UID; sop, series and study are the instance UIDs.
        facts: of images and objects that could be read.
    """

    path: str = field(repr=False)
    size: int
    mtime_ns: int
    kind: str
    digest: str | None = None
    fault: str | None = None
    sop_class: str = ""
    sop: str = field(default="", repr=False)
    series: str = field(default="", repr=False)
    study: str = field(default="", repr=False)
    patient: str = field(default="", repr=False)
    accession: str = field(default="", repr=False)
    facts: Facts | None = None


@dataclass(frozen=True, slots=True)
class Copies:
    """Files that share one SOP Instance UID, which PS3.5 9 forbids to different objects.

    Attributes:
        equal: whether all have the same content; None if they are of one size and were scanned without digests.
    """

    paths: tuple[str, ...] = field(repr=False)
    equal: bool | None


@dataclass(frozen=True, slots=True)
class Survey:
    """A folder compared with its index: files found, rows due and their bytes, those to be opened, rows removed."""

    files: int
    due: int
    due_bytes: int
    unread: int
    removed: int


OWN = tuple(item.name for item in dataclasses.fields(Row))[:-1]
FOUND = tuple(item.name for item in dataclasses.fields(Facts))
HINTS = get_type_hints(Facts)
LISTS = tuple(HINTS[name] == tuple[str, ...] for name in FOUND)
TRUTHS = tuple(HINTS[name] is bool for name in FOUND)
SCHEMA = f"""
CREATE TABLE marks (name TEXT PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE files (path BLOB PRIMARY KEY, {", ".join((*OWN[1:], *FOUND))});
CREATE INDEX files_sop ON files (sop) WHERE sop != '';
"""
SURVEY = """
CREATE TEMP TABLE found (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, kind TEXT, fault TEXT) WITHOUT ROWID;
"""
DUE = """
CREATE TEMP TABLE due AS SELECT found.* FROM found LEFT JOIN files USING (path) WHERE files.path IS NULL
    OR found.size != files.size OR found.mtime_ns != files.mtime_ns OR :rehash
    OR (:digest AND files.digest IS NULL AND files.sop != '') ORDER BY found.path;
"""


class Index:
    """The one writer of an index; nothing else can read or write it meanwhile."""

    def __init__(self, path: Path) -> None:
        """Open or create it.

        Raises:
            StorageError: if it cannot be opened, is in use, or is no index of this version.
        """
        self.path = path
        with own_errors(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # SQLite's drafts inherit the mode
            self._db = sqlite3.connect(path, isolation_level=None, timeout=1)
            try:
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
                self._db.execute("PRAGMA synchronous=FULL")
                self._begin()
                _check(self._db, path)
                path.chmod(0o600)
            except BaseException:
                self._db.close()
                raise

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begin(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        if not self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in filter(str.strip, SCHEMA.split(";")):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id={APPLICATION}")
            self._db.execute(f"PRAGMA user_version={VERSION}")
        self._db.execute("COMMIT")

    def key(self, given: bytes | None) -> bytes:
        """The key of the stations' pseudonyms: the one given, or else random; an index keeps the one that it has.

        Raises:
            InputError: if the index has another one than `given`.
        """
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO marks VALUES ('key', ?)", (given or secrets.token_bytes(32),))
            kept = bytes(self._db.execute("SELECT value FROM marks WHERE name = 'key'").fetchone()[0])
        if given is not None and kept != given:
            raise InputError(
                f"the index {self.path} has another key of pseudonyms than the one given: give none, or another index"
            )
        return kept

    def survey(self, root: Path, found: Iterable[Row], *, digest: bool, rehash: bool) -> Survey:
        """Compare the folder with the index; rows of files that are gone disappear.

        Args:
            found: every file with path, size and time alone, or with a kind where nothing is to be read.

        Raises:
            InputError: if the index is that of another folder.
        """
        with self._transaction():
            self._db.execute("INSERT OR IGNORE INTO marks VALUES ('root', ?)", (os.fsencode(root),))
            kept = self._db.execute("SELECT value FROM marks WHERE name = 'root'").fetchone()[0]
            if kept != os.fsencode(root):
                raise InputError(f"the index {self.path} is of another folder than {root}: give another index")
            self._db.execute("INSERT OR REPLACE INTO marks VALUES ('complete', 0)")
        self._db.execute("DROP TABLE IF EXISTS temp.found")
        self._db.execute("DROP TABLE IF EXISTS temp.due")
        self._db.execute(SURVEY)
        with self._transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO found VALUES (?, ?, ?, ?, ?)",
                ((os.fsencode(row.path), row.size, row.mtime_ns, row.kind or None, row.fault) for row in found),
            )
        with self._transaction():
            removed = self._db.execute("DELETE FROM files WHERE path NOT IN (SELECT path FROM found)").rowcount
            self._db.execute(DUE, {"digest": digest, "rehash": rehash})
        files = self._db.execute("SELECT COUNT(*) FROM found").fetchone()[0]
        query = "SELECT COUNT(*), COALESCE(SUM(size), 0), COUNT(*) - COUNT(kind) FROM due"
        due, due_bytes, unread = self._db.execute(query).fetchone()
        return Survey(files, due, due_bytes, unread, removed)

    def due(self, chunk: int) -> Iterator[tuple[Row, ...]]:
        """What is to be read, in order of the path, `chunk` at a time; rows may be stored meanwhile."""
        last = 0
        while rows := self._db.execute(
            "SELECT rowid, path, size, mtime_ns, kind, fault FROM due WHERE rowid > ? ORDER BY rowid LIMIT ?",
            (last, chunk),
        ).fetchall():
            last = rows[-1][0]
            yield tuple(
                Row(os.fsdecode(path), size, mtime, kind or "", fault=fault)
                for _, path, size, mtime, kind, fault in rows
            )

    def store(self, rows: Iterable[Row]) -> None:
        """Write rows in one transaction, in place of older ones of the same path."""
        places = ", ".join("?" * (len(OWN) + len(FOUND)))
        with self._transaction():
            self._db.executemany(f"INSERT OR REPLACE INTO files VALUES ({places})", map(_encode, rows))

    def finish(self) -> None:
        """Every file that the survey found has its row."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO marks VALUES ('complete', 1)")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with own_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close; what was stored is on the disk already."""
        self._db.close()


def rows(path: Path, kind: str | None = None) -> Iterator[Row]:
    """Every row of a complete index in order of the path, or those of one kind; one at a time.

    Raises:
        InputError: if there is no such index, or its scan did not end.
        StorageError: if it cannot be read.
    """
    condition, values = ("WHERE kind = ?", (kind,)) if kind else ("", ())
    with _reading(path) as db:
        for found in db.execute(f"SELECT * FROM files {condition} ORDER BY path", values):
            yield _decode(found)


def faults(path: Path) -> Iterator[tuple[str, str]]:
    """(path, sentence) of every file that cannot be used; raises as `rows` does."""
    with _reading(path) as db:
        for name, fault in db.execute("SELECT path, fault FROM files WHERE fault IS NOT NULL ORDER BY path"):
            yield os.fsdecode(name), fault


def copies(path: Path) -> Iterator[Copies]:
    """Files that share a SOP Instance UID, group by group; raises as `rows` does."""
    with _reading(path) as db:
        found = db.execute(
            "SELECT sop, path, digest, size FROM files WHERE sop IN "
            "(SELECT sop FROM files WHERE sop != '' GROUP BY sop HAVING COUNT(*) > 1) ORDER BY sop, path"
        )
        for _, members in itertools.groupby(found, key=lambda row: row[0]):
            group = list(members)
            digests, sizes = {row[2] for row in group}, {row[3] for row in group}
            equal = False if len(sizes) > 1 else None if None in digests else len(digests) == 1
            yield Copies(tuple(os.fsdecode(row[1]) for row in group), equal)


def counts(path: Path) -> dict[str, Any]:
    """Totals without any identifier: by kind, of patients, studies and series, of faults and of malformed headers."""
    with _reading(path) as db:
        total = db.execute(
            "SELECT TOTAL(size), COUNT(DISTINCT NULLIF(patient, '')), COUNT(DISTINCT NULLIF(study, '')), "
            "COUNT(DISTINCT NULLIF(series, '')) FROM files"
        ).fetchone()
        kinds = dict(db.execute("SELECT kind, COUNT(*) FROM files GROUP BY kind ORDER BY 2 DESC, 1").fetchall())
        reasons = dict(
            db.execute("SELECT fault, COUNT(*) FROM files WHERE fault IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1")
        )
        malformed: dict[str, int] = {}
        for names, count in db.execute("SELECT malformed, COUNT(*) FROM files WHERE malformed != '' GROUP BY 1"):
            for name in names.split("\\"):
                malformed[name] = malformed.get(name, 0) + count
    names = ("size_bytes", "patients", "studies", "series")
    found = dict(zip(names, map(int, total), strict=True))
    return {**found, "kinds": kinds, "faults": reasons, "malformed": dict(sorted(malformed.items()))}


def root_of(path: Path) -> Path:
    """The folder that was scanned; raises as `rows` does."""
    with _reading(path) as db:
        return Path(os.fsdecode(db.execute("SELECT value FROM marks WHERE name = 'root'").fetchone()[0]))


@contextmanager
def own_errors(path: Path) -> Iterator[None]:
    """Turn an error of SQLite or of the file system into one StorageError sentence."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        busy = isinstance(error, sqlite3.OperationalError) and "locked" in str(error)
        advice = "a scan is using it: wait for it" if busy else "check the disk, its rights and the file"
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StorageError(f"the index {path} cannot be used ({reason}): {advice}") from error


def _check(db: sqlite3.Connection, path: Path) -> None:
    marks = tuple(db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if marks[0] != APPLICATION:
        raise StorageError(f"{path} is another program's SQLite file: choose another place for the index")
    if marks[1] != VERSION:
        raise StorageError(
            f"the index {path} is of version {marks[1]}: expected {VERSION}; delete it and scan the folder again"
        )


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.is_file():
        raise InputError(f"there is no index {path}: scan a folder first")
    with own_errors(path), closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1)) as db:
        _check(db, path)
        complete = db.execute("SELECT value FROM marks WHERE name = 'complete'").fetchone()
        if not (complete and complete[0]):
            raise InputError(f"the scan that makes {path} did not end: run it again, and it goes on where it stopped")
        yield db


def _encode(row: Row) -> tuple[object, ...]:
    own = (os.fsencode(row.path), *(getattr(row, name) for name in OWN[1:]))
    if row.facts is None:
        return (*own, *(None for _ in FOUND))
    values = (getattr(row.facts, name) for name in FOUND)
    return (*own, *("\\".join(value) if isinstance(value, tuple) else value for value in values))


def _decode(found: tuple[Any, ...]) -> Row:
    own, values = found[: len(OWN)], found[len(OWN) :]
    facts = None
    if values[-1] is not None:
        typed: list[Any] = [
            (tuple(value.split("\\")) if value else ()) if is_list else bool(value) if is_truth else value
            for value, is_list, is_truth in zip(values, LISTS, TRUTHS, strict=True)
        ]
        facts = Facts(*typed)
    row: list[Any] = [os.fsdecode(own[0]), *own[1:], facts]
    return Row(*row)
