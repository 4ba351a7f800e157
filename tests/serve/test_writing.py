"""Reports are written in processes of their own: one that dies, hangs or lies costs the study that it wrote for."""

import os
import signal
import time

import pytest
from workbench import slices

from hscc_edge.serve.instances import NO_RESULT, RECEIVED, REPORTED
from hscc_edge.serve.studies import NewReport
from hscc_edge.serve.worker import writing

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")


@pytest.fixture
def hurt(monkeypatch):
    """What a writing process does to itself, or answers, where it writes for one of these studies."""
    deeds = {}
    plain = writing.write_report

    def write_report(config, bundle, order, head, cases):
        study = cases[0][1][0][0]
        if study in deeds and (said := deeds[study]()) is not None:
            return said
        return plain(config, bundle, order, head, cases)

    monkeypatch.setattr(writing, "write_report", write_report)
    return deeds


load = writing.load


def three(made, phantom):
    return [made.put(slices(phantom, str(number), 3, 3 * number)) for number in range(1, 4)]


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "failed: the writer died (signal 11)"),
        (lambda: time.sleep(3600), "failed: the writer took too long and was ended"),
        (lambda: {}["nothing"], "failed: KeyError"),
        (lambda: NewReport("m", "d", "1.2", b"", {}, []), "failed: the writer gave a malformed answer"),
    ],
)
def test_a_writer_that_fails_costs_a_retry_then_the_study_that_caused_it(bench, phantom, hurt, deed, reason):
    made = bench(timeout_s=10.0)
    before, doomed, after = three(made, phantom)
    hurt[doomed] = deed
    assert made.work() == 3
    assert made.states(doomed) == [(NO_RESULT, reason)] * 3
    assert made.kinds(doomed) == ["received", "started", "retried", "started", "no-result"]
    for uid in (before, after):
        assert made.states(uid) == [(REPORTED, None)] * 3 and made.kinds(uid) == ["received", "started", "reported"]


def test_a_writer_that_is_killed_once_costs_nothing_but_the_retry(bench, phantom, hurt, tmp_path):
    made = bench()
    _, doomed, _ = uids = three(made, phantom)
    killed = tmp_path / "killed"

    def once():
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    hurt[doomed] = once
    assert made.work() == 3 and killed.exists()
    assert all(made.states(uid) == [(REPORTED, None)] * 3 for uid in uids)
    assert made.kinds(doomed) == ["received", "started", "retried", "started", "reported"]


def test_a_writer_may_take_its_time_to_start(bench, phantom, monkeypatch):
    monkeypatch.setattr(writing, "load", lambda: (load(), time.sleep(3.0)))
    made = bench(timeout_s=2.0)
    uids = three(made, phantom)
    assert made.work() == 3
    assert all(made.kinds(uid) == ["received", "started", "reported"] for uid in uids)


def test_a_disk_that_fails_under_a_writer_is_no_fault_of_the_study(bench, phantom, hurt):
    made = bench()
    first, second, _ = three(made, phantom)

    def fail():
        raise OSError(5, "Input/output error")

    hurt[second] = fail
    made.worker.step()
    assert made.states(second) == [(RECEIVED, None)] * 3 and made.kinds(second)[-1] == "retried"
    assert made.journal.read("SELECT attempts FROM studies WHERE uid = ?", (second,)) == [(0,)]
    assert not made.worker.busy and made.states(first)[0][0] in (RECEIVED, REPORTED)


def test_studies_are_finished_in_their_order_however_long_one_s_report_takes(bench, phantom, hurt, monkeypatch):
    monkeypatch.setattr(writing, "PROCESSORS_EACH", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    made = bench()
    uids = three(made, phantom)
    hurt[uids[0]] = lambda: time.sleep(1.0)
    assert made.work() == 3
    rows = made.journal.read("SELECT study FROM events WHERE kind = 'reported' ORDER BY id")
    assert [study for (study,) in rows] == uids


def test_a_bundle_that_is_not_what_the_worker_verified_is_not_read(dense):
    with pytest.raises(Exception, match="altered"):
        writing._bundle(str(dense), "0" * 64)
