"""The worker alone: studies share batches, and a real crash, hang or death of it costs one study, after one retry."""

import os
import signal
import time
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pydicom
import pytest

from hscc_edge.bundle import read_bundle
from hscc_edge.runtime.startup import Started, timed_open
from hscc_edge.serve import studies
from hscc_edge.serve.config import Config, Destination, Route, ServedModel, Study, Work
from hscc_edge.serve.content import digest_of
from hscc_edge.serve.inference import Confines, Inference
from hscc_edge.serve.instances import NO_RESULT, REPORTED, Receipt, of_study, receive
from hscc_edge.serve.station import Station, open_state
from hscc_edge.serve.studies import current_report
from hscc_edge.serve.timeline import timeline
from hscc_edge.serve.work import Worker

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")


class Watched:
    """A real runtime that counts its batches on disk, and does to itself what an image that it was marked with says."""

    def __init__(self, runtime, log, marks) -> None:
        self._runtime, self._log, self._marks, self.name = runtime, log, marks, runtime.name

    def infer(self, images: np.ndarray) -> np.ndarray:
        with self._log.open("a") as log:
            log.write(f"{len(images)}\n")
        for marked, deed in self._marks:
            if any(np.array_equal(image, marked) for image in images):
                deed()
        return self._runtime.infer(images)

    def close(self) -> None:
        self._runtime.close()


class Bench:
    """A station whose studies are put straight into its journal."""

    def __init__(self, root, dense, batch: int = 1, marks=(), **settings) -> None:
        self.log, self.marks = root / "batches", list(marks)
        config = Config(
            root / "state",
            settings.pop("model", (ServedModel(dense, "tiny"),)),
            (Destination("archive"),),
            study=Study(quiet_s=0.0),
            work=Work(batch=batch, timeout_s=settings.pop("timeout_s", 120.0)),
            **settings,
        )
        self.station = Station(config, open_state(root / "state"))
        self.journal = self.station.journal()
        self.spool = self.station.spool()
        self.worker = Worker(self.station, self.journal, self.opening)
        self.worker.refresh()
        self.log.write_text("")

    def opening(self, station: Station, bundle) -> Inference:
        def opening() -> Started:
            found = timed_open(bundle)
            runtime = Watched(found.runtime, self.log, self.marks)
            return Started(runtime, found.load_s, found.first_inference_ms, found.warm_inference_ms)

        work = station.config.work
        return Inference(opening, bundle.spec.input_shape, work.batch, Confines(work.timeout_s), station.beat)

    def put(self, files: Sequence[bytes], priority: int = 0) -> str:
        """Receive a study; its UID."""
        receipts = []
        for content in files:
            header = pydicom.dcmread(BytesIO(content), stop_before_pixels=True)
            uids = str(header.SeriesInstanceUID), str(header.StudyInstanceUID)
            receipts.append(
                Receipt(
                    str(header.SOPInstanceUID), str(header.SOPClassUID), digest_of(content), *uids,
                    self.spool.keep(content), len(content), "dimse", self.station.who(uids[1]), time.time(), priority,
                )
            )  # fmt: skip
        receive(self.journal, receipts)
        return receipts[0].study

    def work(self) -> int:
        """Until nothing is due; how many studies were finished."""
        done = 0
        while studies.due(self.journal, 0.0):
            done += self.worker.step()
        return done

    def states(self, study: str) -> list[tuple[str, str | None]]:
        return [(row.state, row.reason) for row in of_study(self.journal, study)]

    def sizes(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()]

    def kinds(self, study: str) -> list[str]:
        return [event.kind for event in timeline(self.journal, study)]

    def close(self) -> None:
        self.worker.close()
        self.journal.close()


@pytest.fixture
def bench(tmp_path, dense):
    made = []

    def build(**settings) -> Bench:
        made.append(Bench(tmp_path, dense, **settings))
        return made[-1]

    yield build
    for item in made:
        item.close()


def slices(phantom, name: str, count: int, start: int = 0, **changes) -> list[bytes]:
    """Some slices of the phantom as one study of that name."""
    found = []
    for number, item in enumerate(phantom.instances[start : start + count]):
        dataset = pydicom.dcmread(phantom.path(item))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.2.{name}", f"1.2.{name}.1"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.{name}.1.{number}"
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        buffer = BytesIO()
        dataset.save_as(buffer)
        found.append(buffer.getvalue())
    return found


def pixels_of(dense, content: bytes) -> np.ndarray:
    """What the network is given of a file."""
    from hscc_edge.data.dicom import read_image
    from hscc_edge.data.preprocess import parse_preprocess

    return parse_preprocess(read_bundle(dense).spec.preprocess)(read_image(BytesIO(content)))


def numbers(report: bytes) -> list[float]:
    """The measured values of a report, in its order."""
    dataset = pydicom.dcmread(BytesIO(report))
    return [float(element.value) for element in dataset.iterall() if element.keyword == "NumericValue"]


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_studies_share_batches_and_decide_as_alone(bench, phantom):
    made = bench(batch=4)
    uids = [made.put(slices(phantom, str(number), 3, 3 * number)) for number in range(1, 4)]
    assert made.work() == 3
    assert made.sizes() == [4, 2, 3]
    shared = [numbers(current_report(made.journal, uid, "tiny")[1]) for uid in uids]
    assert all(made.states(uid) == [(REPORTED, None)] * 3 for uid in uids)
    observed = made.journal.read("SELECT study, label, probabilities, energy, inputs, latency_ms FROM observations")
    assert [row[0] for row in observed] == uids and all(row[1] and row[3] < 0 and row[5] > 0 for row in observed)
    assert '"noise"' in observed[0][4] and "1.2." not in observed[0][4]
    from hscc_edge.runtime import infer_each, open_runtime

    runtime = open_runtime(made.worker._lanes["tiny"].bundle)
    for number, (uid, found) in enumerate(zip(uids, shared, strict=True), start=1):
        inputs = [pixels_of(made.worker._lanes["tiny"].bundle.root, c) for c in slices(phantom, "x", 3, 3 * number)]
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
