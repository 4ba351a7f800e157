"""Upkeep: what retention removes and what it never does, what a crash leaves, and that no task hinders another."""

import logging
import os
import signal
import time
from dataclasses import replace

import pytest
from authority import Authority
from entries import finished, make_station, received, sent

from hscc_edge.serve.audit import audit, head
from hscc_edge.serve.config import Audit, Listener, Log, Retention
from hscc_edge.serve.instances import files
from hscc_edge.serve.operations import retention, upkeep
from hscc_edge.serve.tallies import by_state
from hscc_edge.serve.timeline import timeline

CONTENT = b"\0" * 100_000
YEAR_S = 365 * 86_400


@pytest.fixture
def station(tmp_path):
    return make_station(tmp_path)


@pytest.fixture
def journal(station):
    opened = station.journal()
    yield opened
    opened.close()


def with_rule(station, **rule):
    return replace(station, config=replace(station.config, retention=Retention(**rule)))


def stored(station) -> int:
    return sum(path.suffix == ".dcm" for path in (station.config.state / "spool").iterdir())


def age(journal, study: str, seconds: float) -> None:
    with journal.transaction() as db:
        db.execute("UPDATE studies SET last_received = last_received - ? WHERE uid = ?", (seconds, study))


def calm(journal) -> None:
    """The clock has gone right for more than a day."""
    assert not retention._clock_stands(journal)
    boot, offset, tick = journal.fact(retention.CLOCK).split(" ")
    journal.set_fact(retention.CLOCK, f"{boot} {offset} {float(tick) - 2 * retention.DAY_S}")


def test_old_ended_studies_go_and_others_stay(station, journal):
    ended, unsent, waiting, young = (received(station, journal, number, CONTENT, 2) for number in range(4))
    for study in (ended, young):
        finished(journal, study)
    sent(journal)
    finished(journal, unsent)
    for study in (ended, unsent, waiting):
        age(journal, study, 10 * 86_400)
    calm(journal)
    assert retention.sweep(station, journal) == 0  # no rule
    ruled = with_rule(station, keep_days=5)
    assert retention.sweep(ruled, journal) == 1 and retention.sweep(ruled, journal) == 0
    kept = by_state(journal, "spool_bytes")
    assert stored(station) == 6 and kept["kept"] == 3 * kept["removed"] > 600_000
    last = timeline(journal, ended)[-1]
    assert (last.kind, last.detail) == ("removed", {"files": 2, "bytes": kept["removed"]})
    assert journal.read("SELECT COUNT(*) FROM reports WHERE study = ?", (ended,)) == [(1,)]


def test_the_oldest_go_where_there_are_too_many(station, journal):
    numbers = [received(station, journal, number, CONTENT) for number in range(6)]
    for study in numbers[1:]:
        finished(journal, study)
    sent(journal)
    ruled = with_rule(station, max_gib=350_000 / (1 << 30))
    assert retention.sweep(ruled, journal) == 3
    gone = [uid for (uid,) in journal.read("SELECT study FROM instances WHERE removed IS NOT NULL ORDER BY id")]
    assert gone == numbers[1:4] and stored(station) == 3


def test_a_clock_that_leaps_makes_nothing_old(station, journal, monkeypatch, caplog):
    study = received(station, journal, 1, CONTENT)
    finished(journal, study)
    sent(journal)
    calm(journal)
    ruled, true = with_rule(station, keep_days=30), time.time
    monkeypatch.setattr(time, "time", lambda: true() + YEAR_S)
    for _ in range(3):
        assert retention.sweep(ruled, journal) == 0
    assert stored(station) == 1 and caplog.text.count("clock_leapt") == 1


def test_a_backup_keeps_files_where_they_are(station, journal):
    study = received(station, journal, 1, CONTENT)
    finished(journal, study)
    sent(journal)
    ruled = with_rule(station, max_gib=1e-9)
    with retention.holding(station.config.state, exclusive=False) as held:
        assert held and retention.sweep(ruled, journal) == 0 and stored(station) == 1
    assert retention.sweep(ruled, journal) == 1 and stored(station) == 0


@pytest.mark.parametrize("point", ["removal-noted", "files-removed"])
def test_a_crash_between_rows_and_files_leaves_no_row_without_its_file(station, point, monkeypatch):
    journal = station.journal()
    study = received(station, journal, 1, CONTENT, 3)
    finished(journal, study)
    sent(journal)
    journal.close()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        monkeypatch.setattr("hscc_edge.serve.crash._ASKED", point)
        retention.sweep(with_rule(station, max_gib=1e-9), station.journal())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = station.journal()
    station.spool().sweep(files(again))
    assert files(again) == set() and stored(station) == 0
    assert again.read("SELECT DISTINCT state FROM instances") == [("reported",)]
    again.close()


def test_with_an_audit_repository_a_removed_study_is_told(station, journal):
    study = received(station, journal, 1, CONTENT)
    finished(journal, study)
    sent(journal)
    ruled = with_rule(station, max_gib=1e-9)
    ruled = replace(ruled, config=replace(ruled.config, audit=Audit(host="audit.example")))
    assert retention.sweep(ruled, journal) == 1
    ((content,),) = journal.read("SELECT content FROM audit_messages")
    assert b"110105" in content and study.encode() in content and b"SECRET^NAME" in content


def test_every_task_runs_and_one_that_fails_hinders_no_other(station, journal, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    audit(station, "started")
    monkeypatch.setattr(upkeep.latency, "absorb", lambda journal: 1 / 0)
    memory = upkeep.Memory()
    upkeep.step(station, journal, memory)
    assert "event=upkeep_broken task=latency reason=ZeroDivisionError" in caplog.text
    assert caplog.text.count("event=upkeep_") == 1 and set(memory.done) == {task.__name__ for task in upkeep.TASKS}
    assert head(journal, station.key).seq == 1


def test_certificates_are_told_at_each_threshold(station, journal, tmp_path, caplog):
    tls = Authority(tmp_path / "ca").sign("box", days=5)
    told = replace(station, config=replace(station.config, dicom=Listener(tls=tls)))
    memory = upkeep.Memory()
    for _ in range(3):
        upkeep._certificates(told, journal, memory)
    assert caplog.text.count("certificate_ends used_for=dicom part=own days=") == 1
    memory.told["dicom own"] = 14.0
    upkeep._certificates(told, journal, memory)
    assert caplog.text.count("certificate_ends") == 2
    tls.certificate.write_text("gone")
    upkeep._certificates(told, journal, memory)
    assert "certificate_unreadable" in caplog.text


def test_alarms_are_told_once_and_when_they_end(station, journal, caplog):
    caplog.set_level(logging.INFO)
    study, memory = received(station, journal, 1, CONTENT), upkeep.Memory()
    finished(journal, study)
    with journal.transaction() as db:
        db.execute("UPDATE deliveries SET state = 'dead'")
    for _ in range(3):
        upkeep._alarms(station, journal, memory)
    assert caplog.text.count("1 dead letter") == 1
    with journal.transaction() as db:
        db.execute("UPDATE deliveries SET state = 'delivered'")
    upkeep._alarms(station, journal, memory)
    assert caplog.text.count("event=alarm_over") == 1


def test_a_long_log_and_a_long_journal_begin_anew(station, journal, tmp_path, monkeypatch):
    path = tmp_path / "serve.log"
    path.write_bytes(b"x" * (2 << 20))
    told = replace(station, config=replace(station.config, log=Log(file=path, max_mib=1)))
    upkeep._logs(told, journal, upkeep.Memory())
    assert not path.exists()
    received(station, journal, 1, CONTENT)
    monkeypatch.setattr(upkeep, "WAL_BYTES", 1000)
    upkeep._checkpoint(told, journal, upkeep.Memory())
    assert journal.path.with_name("journal.sqlite-wal").stat().st_size == 0
