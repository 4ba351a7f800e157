"""The failing disk, the power cut and the moody archive of the soak do what they say, and the daemon bears them."""

import errno
import os
import random
import sqlite3
import subprocess
import sys

import pytest
import soak_power
from soak_archive import MOODS
from soak_campaign import Broken, Campaign, Made, Point
from soak_check import sound
from soak_daemon import Refused
from soak_faults import OPERATIONS, Disk, build, place
from soak_points import DO

WRITER = """
import os, sqlite3, time
db = sqlite3.connect("journal.sqlite", isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA synchronous=FULL")
db.execute("PRAGMA wal_autocheckpoint=12")
db.execute("CREATE TABLE rows (number, filler)")
for number in range(30):
    db.execute("INSERT INTO rows VALUES (?, zeroblob(3000))", (number,))
    os.write(1, f"{time.monotonic()}\\n".encode())
os._exit(0)
"""
KEEPER = """
import os
for name, sync in (("kept", True), ("lost", False)):
    with open(name + ".part", "wb") as file:
        file.write(name.encode() * 1000)
        file.flush()
        if sync:
            os.fsync(file.fileno())
    os.rename(name + ".part", name)
    if sync:
        folder = os.open(".", os.O_RDONLY)
        os.fsync(folder)
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def disk(tmp_path, library):
    (tmp_path / "state").mkdir()
    return Disk(tmp_path / "faults", tmp_path / "state", library)


def run(disk, code):
    """A program in the disk's directory, with the shim."""
    return subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=disk.root, env={**os.environ, **disk.environment},
        capture_output=True, text=True,
    )  # fmt: skip


def after(tmp_path, entries, mode, seed=0):
    """The directory that a cut leaves."""
    base = tmp_path / "base"
    base.mkdir(exist_ok=True)
    volume = soak_power.Volume(base)
    volume.play(entries)
    soak_power.cut(volume, tmp_path / "cut", mode, random.Random(seed))
    return tmp_path / "cut"


@pytest.mark.parametrize("name", ["create", "write", "sync", "rename"])
def test_the_call_that_is_asked_for_fails_and_only_that(disk, name):
    disk.arm(errno.ENOSPC, call=2, operations=OPERATIONS[name])
    failed = run(disk, KEEPER)
    assert "No space left" in failed.stderr or name == "sync"
    calls, hits = disk.heal()
    assert (calls >= 2, hits) == (True, 1) and sum(disk.hits().values()) == 1
    assert run(disk, KEEPER).returncode == 0


def test_a_short_write_says_so(disk):
    disk.arm(errno.EIO, operations=OPERATIONS["write"], shorten=True)
    code = "import os; print(os.write(os.open('f', os.O_CREAT | os.O_WRONLY), bytes(10)))"
    assert run(disk, code).stdout == "5\n" and (disk.root / "f").stat().st_size == 5


def test_nothing_outside_fails(disk, tmp_path):
    disk.arm(errno.EIO, chance=1.0)
    assert run(disk, f"open({str(tmp_path / 'outside')!r}, 'w').write('x')").returncode == 0
    assert run(disk, "open('inside', 'w').write('x')").returncode == 1


def test_a_place_names_no_single_file():
    assert place("write /spool/0123456789abcdef0123456789abcdef.dcm") == "write spool/*.dcm"
    assert place("rename /drafts/ab_d3fgh/0123456789abcdef0123456789abcdef.part") == "rename drafts/*/*.part"
    assert place("create /.daemon.json.x1y2z3") == "create .daemon.json.*"


def test_a_power_cut_takes_what_was_not_synced(disk, tmp_path):
    disk.record(True)
    run(disk, KEEPER)
    left = after(tmp_path, disk.diary(), "none")
    assert [path.name for path in left.iterdir()] == ["kept"]
    assert (left / "kept").read_bytes() == (disk.root / "kept").read_bytes()
    names = {
        tuple(sorted((path.name, path.stat().st_size) for path in after(tmp_path, disk.diary(), "any", seed).iterdir()))
        for seed in range(20)
    }
    assert len(names) > 3 and all(("kept", 4000) in found for found in names)
    everything = after(tmp_path, disk.diary(), "all")
    assert {path.name: path.read_bytes() for path in everything.iterdir()} == {
        path.name: path.read_bytes() for path in disk.root.iterdir()
    }


@pytest.mark.parametrize("lie", [False, True])
def test_a_journal_outlives_every_cut_unless_the_disk_lies(disk, tmp_path, lie):
    disk.record(True)
    disk.lie(lie)
    told = [float(line) for line in run(disk, WRITER).stdout.split()]
    entries = list(disk.diary())
    lost = 0
    for number, end in enumerate(range(0, len(entries), 3)):
        left = after(tmp_path, entries[:end], soak_power.MODES[number % 3], number)
        promised = sum(at < entries[end].at for at in told)
        assert lie or not (left / "journal.sqlite").exists() or not sound(left / "journal.sqlite")
        lost += promised - rows_in(left / "journal.sqlite") > 0
    assert len(told) == 30 and (lost > 0) == lie


def rows_in(path) -> int:
    try:
        with sqlite3.connect(path) as db:
            return db.execute("SELECT COUNT(*) FROM rows").fetchone()[0]
    except sqlite3.Error:
        return 0


@pytest.fixture
def campaign(tmp_path, phantom, dense, library):
    found = Campaign(tmp_path / "campaign", Made(dense, None, phantom.path(phantom.instances[0])), library, seed=7)
    yield found
    found.close()


def test_an_archive_in_any_mood_and_a_failing_disk_lose_nothing(campaign):
    campaign.archive.hang_s = 2.5
    kinds = [("mood", name) for name in MOODS]
    kinds += [("disk", "ENOSPC"), ("disk", "EIO"), ("disk-at-start", "ENOSPC"), ("disk", "ENOSPC")]
    campaign.run([Point(*kind, number) for number, kind in enumerate(kinds)], DO)
    found = campaign.finish()
    assert found["problems"] == [] and found["acknowledged"] > 20 and found["results"] > 5
    assert len(campaign.archive.troubles) == len(MOODS) and campaign.tally.faults > 3


def test_a_power_cut_of_a_disk_that_lies_is_noticed(campaign):
    campaign.disk.lie(True)
    with pytest.raises((Broken, Refused), match=r"lost|journal|refused"):
        campaign.run([Point("power", "", number) for number in range(5)], DO)
