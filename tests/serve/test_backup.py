"""Backup of a state directory in use, restore into an empty one, and a check that finds whatever is wrong."""

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from entries import finished, make_station, received, sent

from hscc_edge.errors import InputError, StorageError
from hscc_edge.serve.audit import audit, seal
from hscc_edge.serve.operations import backup, soundness
from hscc_edge.serve.operations.quarantine import aside, release
from hscc_edge.serve.station import visit


@pytest.fixture
def station(tmp_path):
    """A reported study, one that waits, one without a result, accounts, a model and audit lines."""
    found = make_station(tmp_path)
    journal = found.journal()
    one = received(found, journal, 1, b"ab" * 5000, 3)
    finished(journal, one)
    sent(journal)
    received(found, journal, 2)
    refuse(journal, received(found, journal, 3))
    (found.config.state / "models").mkdir()
    (found.config.state / "models" / "bundle.json").write_text("{}")
    (found.config.state / "accounts.json").write_text("{}")
    for number in range(3):
        audit(found, "login", account=f"a{number}")
    seal(found, journal)
    journal.close()
    return found


def refuse(journal, study: str) -> None:
    with journal.transaction() as db:
        db.execute("UPDATE instances SET state = 'no-result', reason = 'cannot be decoded' WHERE study = ?", (study,))


def checked(station, *, running: bool = False) -> tuple[str, ...]:
    journal = station.journal()
    try:
        return soundness.check(station, journal, running=running).faults
    finally:
        journal.close()


def test_a_backup_is_restored_elsewhere_and_is_whole(station, tmp_path):
    station.spool().draft().write_bytes(b"what is just coming in")
    done = backup.export(station, tmp_path / "copy")
    assert (done.instances, done.files) == (5, 5) and done.bytes > 30_000
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    other = replace(station.config, state=tmp_path / "new" / "state")
    backup.restore(tmp_path / "copy", other)
    restored = visit(other)
    assert restored.key == station.key and checked(restored) == ()
    journal = restored.journal()
    assert journal.read("SELECT state, COUNT(*) FROM instances GROUP BY state ORDER BY state") == [
        ("no-result", 1), ("received", 1), ("reported", 3),
    ]  # fmt: skip
    journal.close()
    assert (other.state / "models" / "bundle.json").read_text() == "{}"
    assert other.state.stat().st_mode & 0o777 == 0o700 and (other.state / "key").stat().st_mode & 0o777 == 0o600
    names = {path.name for path in other.state.iterdir()}
    assert names.isdisjoint({"lock", "daemon.json", "backup.json"})


def test_a_backup_of_a_busy_station_is_of_one_instant(station, tmp_path):
    stop, numbers = threading.Event(), iter(range(100, 10_000))

    def go_on() -> None:
        journal = station.journal()
        while not stop.is_set():
            finished(journal, received(station, journal, next(numbers), b"xy" * 2000, 2))
            audit(station, "study-received", study="abc")
            sent(journal)
            seal(station, journal)
        journal.close()

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        for count in range(3):
            backup.export(station, tmp_path / f"copy-{count}")
    finally:
        stop.set()
        writer.join()
    for count in range(3):
        config = replace(station.config, state=tmp_path / f"state-{count}")
        backup.restore(tmp_path / f"copy-{count}", config)
        assert checked(visit(config)) == ()
    assert checked(station) == ()


def test_what_is_restored_is_what_was_backed_up(station, tmp_path):
    backup.export(station, tmp_path / "copy")
    with pytest.raises(StorageError, match="there already"):
        backup.restore(tmp_path / "copy", station.config)
    with pytest.raises(InputError, match="lies in the state directory"):
        backup.export(station, station.config.state / "copy")
    with pytest.raises(StorageError):
        backup.export(station, tmp_path / "copy")
    new = replace(station.config, state=tmp_path / "new")
    with pytest.raises(InputError, match="is no backup"):
        backup.restore(tmp_path, new)
    facts = json.loads((tmp_path / "copy" / "backup.json").read_text())
    (tmp_path / "copy" / "key").write_bytes(b"another")
    with pytest.raises(InputError, match="is not what was backed up"):
        backup.restore(tmp_path / "copy", new)
    facts["files"]["../../etc/passwd"] = "0"
    (tmp_path / "copy" / "backup.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="outside of it"):
        backup.restore(tmp_path / "copy", new)
    assert not new.state.exists()


def test_on_another_file_system_files_are_copied(station, tmp_path, monkeypatch):
    def refuse_links(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse_links)
    assert backup.export(station, tmp_path / "copy").instances == 5


def spoil_file(station) -> None:
    path = next((station.config.state / "spool").glob("*.dcm"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def lose_file(station) -> None:
    next((station.config.state / "spool").glob("*.dcm")).unlink()


def add_stray(station) -> None:
    shutil.copy(station.config.state / "key", station.config.state / "spool" / "stray.dcm")


def cut_audit(station) -> None:
    path = station.config.state / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def sql(*statements: str):
    def run(station) -> None:
        journal = station.journal()
        with journal.transaction() as db:
            db.execute("PRAGMA defer_foreign_keys = ON")
            for statement in statements:
                db.execute(statement)
        journal.close()

    return run


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (spoil_file, "is damaged: send it again"),
        (lose_file, "is missing: send it again"),
        (add_stray, "1 files that no row stands for"),
        (cut_audit, "audit: line 3, which the journal knows, is not there"),
        (sql("UPDATE instances SET state = 'lost' WHERE id = 1"), "an instance in an unknown state: 1"),
        (sql("UPDATE deliveries SET state = 'gone'"), "a delivery in an unknown state: 1"),
        (sql("UPDATE instances SET reason = NULL WHERE state = 'no-result'"), "without a reason: 1"),
        (sql("UPDATE instances SET state = 'reported' WHERE state = 'received'"), "study without a report: 1"),
        (sql("UPDATE reports SET current = 0"), "a study whose reports are all superseded: 1"),
        (sql("UPDATE deliveries SET ended = NULL"), "an ended delivery without a time: 1"),
        (sql("UPDATE instances SET removed = 1 WHERE state = 'received'"), "removed before its instance ended: 1"),
        (sql("UPDATE tallies SET number = number + 1 WHERE what = 'instances'"), "the tally of instances"),
    ],
)
def test_whatever_is_wrong_is_found(station, harm, words):
    assert checked(station) == ()
    harm(station)
    found = checked(station)
    assert any(words in fault for fault in found), found
    assert not any("1.2.826" in fault or "SECRET" in fault for fault in found)


def test_what_a_running_daemon_writes_now_is_no_stray(station):
    add_stray(station)
    assert checked(station, running=True) == ()


def test_a_page_of_zeros_in_the_journal_is_found(station):
    journal = station.journal()
    journal.read("PRAGMA wal_checkpoint(TRUNCATE)")
    pages = journal.read("SELECT rootpage FROM sqlite_master WHERE name = 'instances_study'")
    size = journal.read("PRAGMA page_size")[0][0]
    journal.close()
    path = station.config.state / "journal.sqlite"
    with path.open("r+b") as file:
        file.seek((pages[0][0] - 1) * size)
        file.write(b"\0" * size)
    assert any("damaged" in fault for fault in checked(station))


def test_quarantine_lists_reasons_and_lets_go(station):
    journal = station.journal()
    (found,) = aside(journal)
    assert (found.state, found.reason, found.count) == ("no-result", "cannot be decoded", 1)
    ((study,),) = journal.read("SELECT uid FROM studies WHERE key = ?", (found.key,))
    assert release(journal, study) == 1 and release(journal, study) == 0 and aside(journal) == []
    assert journal.read("SELECT state, reason FROM instances WHERE study = ?", (study,)) == [("received", None)]
    journal.close()
    assert Path(station.config.state, "spool").is_dir() and checked(station) == ()
