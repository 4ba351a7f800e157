"""The worker alone: studies share batches, and a real crash, hang or death of it costs one study, after one retry."""

import os
import signal
import time
from io import BytesIO

import numpy as np
import pydicom
import pytest
from workbench import numbers, pixels_of, slices

from hscc_edge.runtime import infer_each, open_runtime
from hscc_edge.runtime.startup import Started
from hscc_edge.serve import studies
from hscc_edge.serve.config import Route
from hscc_edge.serve.instances import NO_RESULT, REPORTED
from hscc_edge.serve.worker.lane import Input

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_studies_share_batches_and_decide_as_alone(bench, phantom):
    made = bench(batch=4)
    uids = [made.put(slices(phantom, str(number), 3, 3 * number)) for number in range(1, 4)]
    assert made.work() == 3
    assert made.sizes() == [4, 4, 1]
    current = "SELECT content FROM reports WHERE study = ? AND model = 'tiny' AND current = 1"
    shared = [numbers(content) for uid in uids for (content,) in made.journal.read(current, (uid,))]
    assert all(made.states(uid) == [(REPORTED, None)] * 3 for uid in uids)
    observed = made.journal.read("SELECT study, label, probabilities, energy, inputs, latency_ms FROM observations")
    assert [row[0] for row in observed] == uids and all(row[1] and row[3] < 0 and row[5] > 0 for row in observed)
    assert '"noise"' in observed[0][4] and "1.2." not in observed[0][4]
    bundle = made.worker._lanes["tiny"].bundle
    runtime = open_runtime(bundle)
    for number, (uid, found) in enumerate(zip(uids, shared, strict=True), start=1):
        inputs = [pixels_of(bundle.root, content) for content in slices(phantom, str(number), 3, 3 * number)]
        logits = infer_each(runtime, inputs).astype(float)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        mean = (odds / odds.sum(1, keepdims=True)).mean(0)
        assert found[: len(mean)] == pytest.approx(mean, abs=1e-5), uid
    runtime.close()


def test_stat_comes_first_and_shares_no_batch(bench, phantom):
    made = bench(batch=8)
    routine = made.put(slices(phantom, "1", 3))
    stat = made.put(slices(phantom, "2", 3, 3), priority=2)
    assert made.work() == 2 and made.sizes() == [3, 3]
    rows = made.journal.read("SELECT study FROM observations ORDER BY id")
    assert [row[0] for row in rows] == [stat, routine]


def test_a_crash_costs_a_retry_then_the_study_that_caused_it(bench, phantom, dense):
    bad = slices(phantom, "9", 3, 9)
    made = bench(batch=4, marks=[(pixels_of(dense, bad[1]), crash)])
    good, doomed = made.put(slices(phantom, "1", 3)), made.put(bad)
    assert made.work() == 2
    assert made.states(good) == [(REPORTED, None)] * 3
    assert made.states(doomed) == [(NO_RESULT, "failed: the inference died (signal 11)")] * 3
    assert made.kinds(doomed) == ["received", "started", "retried", "started", "no-result"]
    after = made.put(slices(phantom, "2", 3, 3))
    assert made.work() == 1 and made.states(after) == [(REPORTED, None)] * 3
    failed = made.journal.read("SELECT study, failed FROM observations WHERE failed IS NOT NULL")
    assert failed == [(doomed, "the inference died (signal 11)")]


def test_an_inference_that_hangs_is_ended_and_the_next_study_goes_on(bench, phantom, dense):
    bad = slices(phantom, "9", 2, 9)
    made = bench(marks=[(pixels_of(dense, bad[0]), lambda: time.sleep(3600))], timeout_s=1.0)
    doomed, good = made.put(bad), made.put(slices(phantom, "1", 3))
    assert made.work() == 2
    assert made.states(doomed) == [(NO_RESULT, "failed: the inference took too long and was ended")] * 2
    assert made.states(good) == [(REPORTED, None)] * 3


def test_a_study_during_which_the_worker_died_is_tried_alone_and_then_set_aside(bench, phantom):
    made = bench(batch=8)
    other, doomed = made.put(slices(phantom, "1", 3)), made.put(slices(phantom, "2", 3, 3))
    studies.claim(made.journal, [doomed])  # a worker began, and was seen no more
    made.work()
    assert made.sizes() == [3, 3] and made.states(doomed) == made.states(other) == [(REPORTED, None)] * 3
    twice = made.put(slices(phantom, "3", 3, 6))
    for _ in range(2):
        studies.claim(made.journal, [twice])
    assert made.work() == 1 and made.sizes() == [3, 3]
    assert made.states(twice) == [(NO_RESULT, "failed: the worker died")] * 3


def test_a_power_cut_counts_otherwise_than_a_death_of_the_worker(bench, phantom):
    made = bench()
    uid = made.put(slices(phantom, "1", 3))
    for _ in range(5):
        studies.claim(made.journal, [uid])
        studies.begin_life(made.journal)
    (due,) = studies.due(made.journal, 0.0)
    assert (due.attempts, due.crashes) == (0, 5)
    assert made.work() == 1 and made.states(uid) == [(REPORTED, None)] * 3


def test_what_cannot_be_decoded_or_is_out_of_scope_is_told_and_the_others_are_reported(bench, phantom):
    routes = (Route({"Modality": ("MR",)}), Route({"Modality": ("CT",)}, aside="no head scan"))
    made = bench(route=routes)
    files = slices(phantom, "1", 6)
    broken, ct, other = (pydicom.dcmread(BytesIO(files[number])) for number in (1, 2, 3))
    broken.PixelData, ct.Modality, other.Modality = broken.PixelData[:100], "CT", "US"
    for number, dataset in ((1, broken), (2, ct), (3, other)):
        buffer = BytesIO()
        dataset.save_as(buffer)
        files[number] = buffer.getvalue()
    uid = made.put(files)
    assert made.work() == 1
    assert made.states(uid) == [
        (REPORTED, None), (NO_RESULT, "cannot be decoded"), (NO_RESULT, "out of scope: no head scan"),
        (NO_RESULT, "out of scope: no route matches"), (REPORTED, None), (REPORTED, None),
    ]  # fmt: skip


def test_every_frame_of_an_enhanced_file_counts(bench, phantom, dense):
    files = slices(phantom, "1", 2)
    first, second = (pydicom.dcmread(BytesIO(content)) for content in files)
    first.NumberOfFrames, first.PixelData = 2, first.PixelData + second.PixelData
    buffer = BytesIO()
    first.save_as(buffer)
    made = bench()
    uid = made.put([buffer.getvalue()])
    assert made.work() == 1 and made.sizes() == [1, 1] and made.states(uid) == [(REPORTED, None)]


def test_a_runtime_that_is_gone_postpones_and_gives_nothing_up(bench, phantom):
    made = bench()
    uid = made.put(slices(phantom, "1", 3))
    made.worker._lanes["tiny"].inference.close()

    def gone() -> Started:
        raise RuntimeError("the GPU fell off the bus")

    made.worker._lanes["tiny"].inference._opening = gone
    assert made.worker.step() == 0
    assert made.states(uid) == [("received", None)] * 3 and made.kinds(uid)[-1] == "retried"
    assert made.journal.read("SELECT attempts FROM studies") == [(0,)]


def test_an_input_of_another_shape_is_not_taken(bench):
    made = bench()
    lane = made.worker._lanes["tiny"]
    colour = np.zeros((3, 64, 64), np.float32)
    assert not lane.add("1.2.3", Input((), {}), colour) and not lane.add("1.2.3", Input((), {}), colour[:1, :32])
    lane.push()
    assert made.sizes() == []
