"""A folder as it comes out of a PACS: every file has a row, nothing ends the scan, the next reads no more."""

import dataclasses
import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import psutil
import pydicom
import pytest
from pydicom.data import get_testdata_file

from hscc_edge.data import header, index, scan
from hscc_edge.data.facts import facts_of
from hscc_edge.data.index import DICOMDIR, FAULT, IMAGE, LINK, OBJECT, Index, Row
from hscc_edge.errors import ConfigError, InputError, StorageError

KEY = b"k" * 32
WHEEL = Path(get_testdata_file("MR_small.dcm", download=False)).parent
FILES = sorted(path for path in WHEEL.rglob("*") if path.is_file())
UNICODE, RAW = "Müller 画像.dcm", os.fsdecode(b"M\xfcller\xff.dcm")


def changed(source: Path, target: Path, **values) -> Path:
    dataset = pydicom.dcmread(source)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.save_as(target)
    return target


@pytest.fixture
def tree(tmp_path) -> Path:
    """pydicom's files among everything else that a CD holds."""
    root = tmp_path / "tree"
    shutil.copytree(WHEEL, root)
    small = WHEEL / "MR_small.dcm"
    (root / "deep" / "er").mkdir(parents=True)
    for name in (UNICODE, RAW, "deep/er/IM00001"):
        shutil.copy(small, root / name)
    changed(small, root / "other.dcm", PatientName="Other^Patient")
    (root / "AUTORUN.INF").write_text("[autorun]\n")
    (root / "viewer.exe").write_bytes(b"MZ" + bytes(1000))
    (root / "all.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (root / "Thumbs.db").write_bytes(random.Random(1).randbytes(3000))
    (root / "report.pdf").write_bytes(b"%PDF-1.4\n%\xe2\xe3")
    (root / "empty").touch()
    (root / "lost.dcm").write_bytes(bytes(4096))
    (root / "deep" / "loop").symlink_to(root, target_is_directory=True)
    (root / "away").symlink_to(small)
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    return root


def run(root: Path, target: Path, **options) -> scan.ScanSummary:
    return scan.scan(root, target, **{"jobs": 1, "key": KEY, **options})


def table(path: Path) -> list[Row]:
    return list(index.rows(path))


def test_every_file_has_its_row(tree, tmp_path):
    summary = run(tree, tmp_path / "index")
    rows = {row.path: row for row in table(tmp_path / "index")}
    names = {os.path.relpath(os.path.join(folder, name), tree) for folder, _, names in os.walk(tree) for name in names}
    assert set(rows) == names | {"deep/loop"} and summary.files == len(rows)
    kinds = Counter(row.kind for row in rows.values())
    assert summary.kinds == kinds
    assert {name for name, row in rows.items() if row.kind == LINK} == {"deep/loop", "away", "dangling"}
    expected = {
        "AUTORUN.INF": "text", "viewer.exe": "program", "all.zip": "zip archive", "Thumbs.db": "unknown",
        "empty": "empty", "report.pdf": "pdf", "lost.dcm": FAULT, "pipe": "special file",
        "MR_truncated.dcm": FAULT, "no_meta.dcm": FAULT,
        "rtplan_truncated.dcm": FAULT, "ExplVR_BigEndNoMeta.dcm": FAULT, "reportsi.dcm": OBJECT, "CT_small.dcm": IMAGE,
        "dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM000000": FAULT,
    }  # fmt: skip
    assert {name: rows[name].kind for name in expected} == expected
    directories = {name for name, row in rows.items() if row.kind == DICOMDIR}
    assert directories == {name for name in names if Path(name).name.startswith("DICOMDIR")}
    for row in rows.values():
        assert (row.fault is None) == (row.kind != FAULT)
        assert row.digest == (hashlib.sha256((tree / row.path).read_bytes()).hexdigest() if row.digest else None)
        assert bool(row.digest) >= (row.kind in (IMAGE, OBJECT, DICOMDIR))
    assert sum(summary.faults.values()) == kinds[FAULT] == len(list(index.faults(tmp_path / "index")))
    assert summary.malformed == {"NumberOfFrames": 1}
    assert index.root_of(tmp_path / "index") == tree


def test_what_is_read_is_what_pydicom_reads(tree, tmp_path):
    run(tree, tmp_path / "index")
    described = [row for row in table(tmp_path / "index") if row.facts]
    assert len(described) > 100
    for row in described:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(tree / row.path, stop_before_pixels=True)
            assert row.facts == facts_of(dataset, KEY), row.path
            names = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")
            found = [str(dataset.get(name) or "") for name in names]
        assert [row.sop_class, row.sop, row.series, row.study, row.patient] == found


def test_copies_and_conflicts(tree, tmp_path):
    summary = run(tree, tmp_path / "index")
    groups = {group.paths: group.equal for group in index.copies(tmp_path / "index")}
    (ours,) = [group for group in groups if UNICODE in group]
    assert {UNICODE, RAW, "deep/er/IM00001", "MR_small.dcm", "other.dcm"} <= set(ours) and groups[ours] is False
    assert summary.conflicts == sum(equal is False for equal in groups.values())
    only = tmp_path / "only"
    only.mkdir()
    for name in "abc":
        shutil.copy(WHEEL / "CT_small.dcm", only / name)
    assert run(only, tmp_path / "equal").equal_copies == 2
    assert run(only, tmp_path / "unknown", digest=False).uncompared == 1
    changed(WHEEL / "CT_small.dcm", only / "d", PatientName="Somebody^Else^With^a^Long^Name")
    assert run(only, tmp_path / "unknown", digest=False).conflicts == 1


def test_names_that_are_no_text_come_back(tree, tmp_path):
    run(tree, tmp_path / "index")
    names = {row.path for row in table(tmp_path / "index")}
    assert {UNICODE, RAW} <= names and all(os.path.lexists(tree / name) for name in names)


def test_a_second_scan_reads_only_what_changed(tree, tmp_path):
    target = tmp_path / "index"
    first = run(tree, target)
    files = sum(path.is_file() and not path.is_symlink() for path in tree.rglob("*"))
    assert first.read == files
    again = run(tree, target)
    assert (again.read, again.unchanged, again.removed) == (0, first.files, 0)
    changed(WHEEL / "CT_small.dcm", tree / "CT_small.dcm", PatientID="new")
    os.utime(tree / "MR_small.dcm", ns=(1, 1))
    shutil.copy(WHEEL / "CT_small.dcm", tree / "added")
    shutil.rmtree(tree / "dicomdirtests" / "98892001")
    (tree / "away").unlink()
    third = run(tree, target)
    assert (third.read, third.removed) == (3, 7 + 1)
    run(tree, tmp_path / "clean")
    assert table(target) == table(tmp_path / "clean")
    assert run(tree, target, rehash=True).read == files - 7 + 1


def test_a_file_whose_content_alone_changed_needs_rehash(tree, tmp_path):
    path, target = tree / "CT_small.dcm", tmp_path / "index"
    run(tree, target)
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    digest = hashlib.sha256(content).hexdigest()
    assert run(tree, target).read == 0 and digest not in {row.digest for row in table(target)}
    run(tree, target, rehash=True)
    assert digest in {row.digest for row in table(target)}


def test_digests_may_be_asked_for_later(tree, tmp_path):
    target = tmp_path / "index"
    run(tree, target, digest=False)
    assert not any(row.digest for row in table(target))
    later = run(tree, target)
    assert later.read == sum(bool(row.sop) for row in table(target))
    run(tree, tmp_path / "clean")
    plain = [row for row in table(tmp_path / "clean") if row.sop]
    assert [row for row in table(target) if row.sop] == plain


@pytest.fixture
def copies(tmp_path) -> Path:
    """More files than one process is given: 320 small ones."""
    root = tmp_path / "copies"
    for number in range(320):
        folder = root / f"{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(WHEEL / "MR_small_RLE.dcm", folder / f"{number}")
    return root


def test_processes_change_nothing(copies, tmp_path):
    seen = []
    one = run(copies, tmp_path / "one")
    two = run(copies, tmp_path / "two", jobs=2, progress=seen.append)
    assert table(tmp_path / "one") == table(tmp_path / "two")
    assert dataclasses.replace(one, seconds=0) == dataclasses.replace(two, seconds=0)
    size = 320 * (WHEEL / "MR_small_RLE.dcm").stat().st_size
    assert seen[-1] == scan.Progress(320, 320, size, size)
    assert [item.files for item in seen] == sorted({item.files for item in seen})


SLOW = """
import sys, time
from pathlib import Path
from hscc_edge.data import scan

def tell(progress):
    print(progress.files, flush=True)
    time.sleep(0.25)

if __name__ == "__main__":
    scan.BATCH, root, target = 16, Path(sys.argv[1]), Path(sys.argv[2])
    scan.scan(root, target, jobs=2, key=b"k" * 32, progress=tell)
"""


@pytest.mark.parametrize("after", [1, 5])
def test_a_killed_scan_goes_on_where_it_stopped(copies, tmp_path, after):
    script, target = tmp_path / "slow.py", tmp_path / "index"
    script.write_text(SLOW)
    with subprocess.Popen([sys.executable, script, copies, target], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(after):
            stored = int(process.stdout.readline())
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and len(family) >= 2
    assert not psutil.wait_procs(family, timeout=20)[1], "processes stay behind"
    with pytest.raises(InputError, match="run it again"):
        table(target)
    resumed = run(copies, target)
    assert resumed.files == 320 and 0 < resumed.read <= 320 - stored
    run(copies, tmp_path / "clean")
    assert table(target) == table(tmp_path / "clean")


@pytest.fixture
def as_nobody():
    """A folder for a user whom permissions bind, as whom the test then runs."""
    root = Path(tempfile.mkdtemp())
    if os.geteuid():
        yield root
    else:
        os.chown(root, 65534, 65534)
        os.seteuid(65534)
        try:
            yield root
        finally:
            os.seteuid(0)
    shutil.rmtree(root)


def test_permissions(as_nobody):
    root, target = as_nobody / "tree", as_nobody / "index"
    (root / "closed").mkdir(parents=True)
    for name in ("open.dcm", "shut.dcm", "closed/inner.dcm"):
        shutil.copy(WHEEL / "CT_small.dcm", root / name)
    (root / "shut.dcm").chmod(0)
    (root / "closed").chmod(0)
    summary = run(root, target)
    assert summary.kinds == {FAULT: 2, IMAGE: 1}
    sentences = dict(index.faults(target))
    assert "cannot be listed (Permission denied)" in sentences["closed"]
    assert "cannot be read (Permission denied)" in sentences["shut.dcm"]
    (root / "shut.dcm").chmod(0o600)
    (root / "closed").chmod(0o700)
    assert run(root, target).read == 2 and {row.kind for row in table(target)} == {IMAGE}


@pytest.mark.parametrize("mode", [None, 0o644])
def test_an_index_is_its_owners_alone(tree, tmp_path, mode):
    target = tmp_path / "index"
    if mode:
        target.touch(mode)
    run(tree, target)
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("index")] == ["index"]


def test_an_index_in_the_folder_is_not_of_the_folder(tree, tmp_path):
    run(tree, tmp_path / "outside")
    run(tree, tree / "deep" / "index")
    assert table(tree / "deep" / "index") == table(tmp_path / "outside")


def test_no_identifier_is_shown(tree, tmp_path, caplog):
    summary = run(tree, tmp_path / "index")
    rows = table(tmp_path / "index")
    shown = repr(summary) + repr(rows) + repr(list(index.copies(tmp_path / "index")))
    secret = {value for row in rows for value in (row.sop, row.series, row.study, row.patient, row.accession)}
    secret |= {row.facts.series_description for row in rows if row.facts} | {row.path for row in rows}
    assert not [value for value in secret if len(value) > 5 and value in shown]
    assert not caplog.records, "pydicom's own messages quote values"


def test_what_is_no_index(tree, tmp_path):
    with pytest.raises(InputError, match="scan a folder first"):
        table(tmp_path / "absent")
    (tmp_path / "text").write_text("hello " * 500)
    with pytest.raises(StorageError, match="cannot be used"):
        run(tree, tmp_path / "text")
    with sqlite3.connect(tmp_path / "foreign") as db:
        db.execute("CREATE TABLE t (a)")
    db.close()
    (tmp_path / "foreign").chmod(0o644)
    before = (tmp_path / "foreign").read_bytes()
    with pytest.raises(StorageError, match="another program"):
        run(tree, tmp_path / "foreign")
    assert (tmp_path / "foreign").stat().st_mode & 0o777 == 0o644 and (tmp_path / "foreign").read_bytes() == before
    run(tree, tmp_path / "old")
    with sqlite3.connect(tmp_path / "old") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StorageError, match="version 99"):
        table(tmp_path / "old")
    with pytest.raises(StorageError, match="cannot be used"):
        run(tree, tmp_path / "no" / "such" / "folder")


def test_misuse(tree, tmp_path):
    with pytest.raises(InputError, match="no folder"):
        run(tmp_path / "absent", tmp_path / "index")
    with pytest.raises(ConfigError, match="at least 1"):
        run(tree, tmp_path / "index", jobs=0)
    run(tree, tmp_path / "index")
    with pytest.raises(InputError, match="another key"):
        run(tree, tmp_path / "index", key=b"other")
    with pytest.raises(InputError, match="another folder"):
        run(tree / "deep", tmp_path / "index")
    with Index(tmp_path / "index"), pytest.raises(StorageError, match="wait for it"):
        run(tree, tmp_path / "index")


def test_an_index_keeps_its_random_key(tree, tmp_path):
    changed(WHEEL / "CT_small.dcm", tree / "CT_small.dcm", StationName="CT-EAST")
    stations = set()
    for name in ("one", "one", "two"):
        run(tree, tmp_path / name, key=None, rehash=True)
        stations |= {row.facts.station for row in table(tmp_path / name) if row.path == "CT_small.dcm"}
    assert len(stations) == 2


@pytest.mark.parametrize("digest", [False, True])
@pytest.mark.parametrize("first", [256, 1500, 5000])
def test_a_large_file_is_read_as_a_small_one_is(monkeypatch, tmp_path, digest, first):
    monkeypatch.setattr(header, "FIRST", first)
    if digest:
        monkeypatch.setattr(header, "SMALL", 1000)
    run(WHEEL, tmp_path / "index", digest=digest)
    monkeypatch.undo()
    run(WHEEL, tmp_path / "clean")
    clean = [row if digest else dataclasses.replace(row, digest=None) for row in table(tmp_path / "clean")]
    assert table(tmp_path / "index") == clean


def test_an_index_is_read_a_row_at_a_time(tmp_path):
    with Index(tmp_path / "index") as target:
        many = [Row(f"{number:06d}", 1, 1, "text") for number in range(20_000)]
        target.survey(tmp_path, many, digest=True, rehash=False)
        assert sum(map(len, target.due(64))) == 20_000
        target.store(many)
        target.finish()
    del many
    tracemalloc.start()
    assert sum(1 for _ in index.rows(tmp_path / "index")) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_files_that_go_away_meanwhile(tree, tmp_path, monkeypatch):
    entries = list(scan.walk(tree))
    monkeypatch.setattr(scan, "walk", lambda *_: iter([*entries, Row("gone.dcm", 9, 9, "")]))
    run(tree, tmp_path / "index")
    assert "No such file" in dict(index.faults(tmp_path / "index"))["gone.dcm"]
    monkeypatch.undo()
    assert run(tree, tmp_path / "index").removed == 1
