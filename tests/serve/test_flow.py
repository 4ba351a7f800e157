"""Studies on their way: read, inferred and reported at the same time; a reading process that dies costs one study."""

import os
import signal
import time
from io import BytesIO
from itertools import pairwise

import pydicom
import pytest
from workbench import benches, numbers, slices

from hscc_edge.serve.instances import NO_RESULT, RECEIVED, REPORTED
from hscc_edge.serve.worker.sight import Sight

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
REPORTS = "SELECT content FROM reports WHERE study = ? AND current = 1"


@pytest.fixture
def hurt(monkeypatch):
    """What a reading process does to itself where it is given a file of one of these digests."""
    deeds = {}
    plain = Sight._file

    def file(self, ask):
        if ask["digest"] in deeds:
            deeds[ask["digest"]]()
        yield from plain(self, ask)

    monkeypatch.setattr(Sight, "_file", file)
    return deeds


def digests(made, study):
    return [digest for (digest,) in made.journal.read("SELECT digest FROM instances WHERE study = ?", (study,))]


def test_the_next_study_begins_before_the_report_of_the_last_is_made(bench, phantom):
    made = bench()
    uids = [made.put(slices(phantom, str(number), 3, 3 * number)) for number in range(1, 5)]
    assert made.work() == 4 and not made.worker.busy
    events = made.journal.read("SELECT study, kind FROM events WHERE kind IN ('started', 'reported') ORDER BY id")
    for earlier, later in pairwise(uids):
        assert events.index((later, "started")) < events.index((earlier, "reported"))
    assert [study for study, kind in events if kind == "reported"] == uids


def test_a_study_on_its_way_is_not_begun_again(bench, phantom, monkeypatch):
    monkeypatch.setattr("hscc_edge.serve.worker.work.TURN_S", 0.0)  # every step ends after the first study
    made = bench()
    uids = [made.put(slices(phantom, str(number), 3, 3 * number)) for number in range(1, 5)]
    assert made.work() == 4
    assert all(made.kinds(uid) == ["received", "started", "reported"] for uid in uids)


def test_many_readers_give_the_numbers_of_one(bench, phantom, tmp_path, dense):
    files = [slices(phantom, str(number), 5, 5 * number) for number in range(1, 4)]
    found = []
    for readers in (1, 3):
        (tmp_path / str(readers)).mkdir()
        with benches(tmp_path / str(readers), dense) as build:
            made = build(readers=readers)
            uids = [made.put(content) for content in files]
            assert made.work() == 3
            found.append([numbers(made.journal.read(REPORTS, (uid,))[0][0]) for uid in uids])
    assert found[0] == found[1] and len(found[0]) == 3


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "failed: the reader died (signal 11)"),
        (lambda: time.sleep(3600), "failed: the reader took too long and was ended"),
        (lambda: {}["nothing"], "failed: KeyError"),
    ],
)
def test_a_reader_that_dies_costs_a_retry_then_the_study_that_caused_it(bench, phantom, hurt, deed, reason):
    made = bench(timeout_s=1.0, readers=2)
    before, doomed, after = (made.put(slices(phantom, str(number), 9, 9 * number)) for number in range(1, 4))
    hurt |= dict.fromkeys(digests(made, doomed)[1:], deed)
    assert made.work() == 3
    assert made.states(doomed) == [(NO_RESULT, reason)] * 9
    assert made.kinds(doomed) == ["received", "started", "retried", "started", "no-result"]
    for uid in (before, after):
        assert made.states(uid) == [(REPORTED, None)] * 9
        assert made.kinds(uid) == ["received", "started", "reported"]


def test_a_disk_that_fails_under_a_reader_is_no_fault_of_the_study(bench, phantom, hurt):
    made = bench()
    first, second = (made.put(slices(phantom, str(number), 3, 3 * number)) for number in range(1, 3))

    def fail():
        raise OSError(5, "Input/output error")

    hurt[digests(made, second)[0]] = fail
    assert made.worker.step() <= 1
    assert made.states(second) == [(RECEIVED, None)] * 3 and made.kinds(second)[-1] == "retried"
    assert made.journal.read("SELECT attempts FROM studies WHERE uid = ?", (second,)) == [(0,)]
    assert not made.worker.busy and made.states(first)[0][0] in (RECEIVED, REPORTED)


def test_malformed_headers_are_one_file_s_fault(bench, phantom, monkeypatch):
    made = bench()
    files = slices(phantom, "1", 3)
    broken = pydicom.dcmread(BytesIO(files[1]))
    broken.PixelSpacing = [1.0, 1.0]
    buffer = BytesIO()
    broken.save_as(buffer)
    files[1] = buffer.getvalue().replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00SQ")  # Rows as a sequence
    uid = made.put(files)
    assert made.work() == 1
    assert made.states(uid) == [(REPORTED, None), (NO_RESULT, "cannot be decoded"), (REPORTED, None)]


def test_stopping_ends_what_was_begun(bench, phantom):
    made = bench()
    uids = [made.put(slices(phantom, str(number), 3, 3 * number)) for number in range(1, 4)]
    made.worker._flow.take(next(iter(made.due())))
    assert made.worker.busy
    made.worker.finish()
    assert made.states(uids[0]) == [(REPORTED, None)] * 3 and made.states(uids[1])[0] == (RECEIVED, None)
    assert made.journal.read("SELECT SUM(attempts) FROM studies") == [(0,)]
