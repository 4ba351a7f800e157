"""kill -9 at named steps and random instants, power cuts too, while dcmtk sends: nothing is lost or doubled."""

import random
import shutil
import sqlite3

import pytest
from soak_campaign import Campaign, Made
from soak_check import figures, gather, problems
from soak_faults import build
from soak_load import read_items
from soak_plan import ten_points
from soak_points import DO


@pytest.fixture(scope="module")
def outlived(tmp_path_factory, phantom, dense):
    """(directory, figures) of a campaign of ten kills that is over."""
    root, seed = tmp_path_factory.mktemp("kill"), random.randrange(10**6)
    print(f"seed {seed}")
    campaign = Campaign(root / "campaign", Made(dense, None, phantom.path(phantom.instances[0])), build(root), seed)
    try:
        campaign.run(ten_points(seed), DO)
        found = campaign.finish()
    finally:
        campaign.close()
    return root / "campaign", found


def test_nothing_acknowledged_is_lost_or_doubled(outlived):
    _, found = outlived
    assert found["problems"] == []
    assert found["acknowledged"] > 20 and found["lost"] == 0
    assert found["results"] > 5 and found["duplicated_results"] == 0


def execute(statement):
    def damage(root):
        with sqlite3.connect(root / "state" / "journal.sqlite") as db:
            assert db.execute(statement).rowcount > 0

    return damage


def first_file(root):
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        (name,) = db.execute("SELECT file FROM instances WHERE state = 'reported'").fetchone()
    return root / "state" / "spool" / name


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def archived(root):
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        (uid,) = db.execute("SELECT sop FROM reports WHERE current = 1").fetchone()
    return next((root / "archive").glob(f"*-{uid}-*.dcm"))


def double(root):
    path = archived(root)
    other = path.with_name("9" + path.name)
    shutil.copy(path, other)
    flip(other)


SOME = "(SELECT id FROM {0} WHERE {1} LIMIT 1)"
DAMAGES = {
    "a file is gone": ("lost", lambda root: first_file(root).unlink()),
    "a byte is another": ("lost", lambda root: flip(first_file(root))),
    "a row is gone": ("lost", execute(f"DELETE FROM instances WHERE id = {SOME.format('instances', 1)}")),
    "work is left": (
        "not_terminal", execute(f"UPDATE instances SET state = 'received' WHERE id = {SOME.format('instances', 1)}"),
    ),
    "a result is gone": ("results", execute("UPDATE reports SET current = 0 WHERE id = (SELECT MAX(id) FROM reports)")),
    "the archive has nothing": ("missing_at_archive", lambda root: archived(root).unlink()),
    "two contents under one UID": ("duplicated_results", double),
    "a report that names nothing": (
        "predecessor", execute(f"UPDATE reports SET predecessor = '1.2' WHERE id = {SOME.format('reports', 1)}"),
    ),
    "a stray file": ("stray", lambda root: (root / "state" / "spool" / "stray.dcm").write_bytes(b"")),
    "a delivery is dead": ("undelivered", execute("UPDATE deliveries SET state = 'dead' WHERE id = 1")),
    "a torn page": ("journal", lambda root: tear(root / "state" / "journal.sqlite")),
}  # fmt: skip


def tear(path):
    """Zeros in the middle of the index pages; the write-ahead log is in the file first."""
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'instances_study'").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096 + 2048)
        file.write(bytes(2048))


@pytest.mark.parametrize("name", DAMAGES)
def test_the_checker_finds(name, outlived, tmp_path):
    """A check that cannot fail is worth nothing: each rule is broken once."""
    root, _ = outlived
    for part in ("state", "archive"):
        shutil.copytree(root / part, tmp_path / part)
    shutil.copy(root / "acknowledged.jsonl", tmp_path)
    rule, damage = DAMAGES[name]
    damage(tmp_path)
    found = gather(tmp_path / "state", read_items(tmp_path / "acknowledged.jsonl"), tmp_path / "archive")
    wrong = list(problems(found))
    assert any(line.startswith(f"{rule}:") for line in wrong), wrong
    counted = figures(found, wrong)
    assert counted.get(rule, 0) > 0 or counted["other_problems"].get(rule, 0) > 0
