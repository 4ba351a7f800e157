"""A worker of one's own: studies are put straight into its journal, and its network may be told to misbehave."""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom

from hscc_edge.bundle import Bundle, read_bundle, rewrite
from hscc_edge.data.dicom import read_image
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.runtime.startup import Started, timed_open
from hscc_edge.serve import studies
from hscc_edge.serve.config import Config, Destination, ServedModel, Study, Work
from hscc_edge.serve.doors.content import digest_of
from hscc_edge.serve.instances import Receipt, of_study, receive
from hscc_edge.serve.station import Station, open_state
from hscc_edge.serve.timeline import Event, timeline
from hscc_edge.serve.worker.inference import Confines, Inference
from hscc_edge.serve.worker.work import Worker


class Watched:
    """A real runtime that notes its batches, does to itself what a marked input says, and to its logits what it may."""

    def __init__(self, runtime, log, marks, deed) -> None:
        self._runtime, self._log, self._marks, self._deed, self.name = runtime, log, marks, deed, runtime.name

    def infer(self, images: np.ndarray) -> np.ndarray:
        with self._log.open("a") as log:
            log.write(f"{len(images)}\n")
        for marked, deed in self._marks:
            if any(np.array_equal(image, marked) for image in images):
                deed()
        logits = self._runtime.infer(images)
        return logits if self._deed is None else self._deed(logits)

    def close(self) -> None:
        self._runtime.close()


class Bench:
    """A station whose studies are put straight into its journal."""

    def __init__(self, root, dense, batch: int = 1, marks=(), deeds=None, **settings) -> None:
        """`marks`: (input, what the network does to itself when it sees it); `deeds`: digest -> what it does always."""
        self.log, self.marks, self.deeds = root / "batches", list(marks), deeds or {}
        config = Config(
            root / "state",
            settings.pop("model", (ServedModel(dense, "tiny"),)),
            (Destination("archive"),),
            study=Study(quiet_s=0.0),
            work=Work(batch=batch, timeout_s=settings.pop("timeout_s", 120.0), readers=settings.pop("readers", 1)),
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
            runtime = Watched(found.runtime, self.log, self.marks, self.deeds.get(bundle.digest))
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
        while self.due():
            done += self.worker.step()
        return done

    def due(self) -> list[studies.Due]:
        """Complete studies, in their order."""
        return studies.due(self.journal, 0.0)

    def states(self, study: str) -> list[tuple[str, str | None]]:
        return [(row.state, row.reason) for row in of_study(self.journal, study)]

    def sizes(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()]

    def kinds(self, study: str) -> list[str]:
        return [event.kind for event in timeline(self.journal, study)]

    def world(self) -> list[Event]:
        """What concerns no study."""
        rows = self.journal.read("SELECT time, kind, detail FROM events WHERE study IS NULL ORDER BY id")
        return [Event(at, kind, json.loads(detail)) for at, kind, detail in rows]

    def close(self) -> None:
        self.worker.close()
        self.journal.close()


@contextmanager
def benches(root: Path, dense: Path, **always) -> Iterator[Callable[..., Bench]]:
    """What makes benches, closed at the end."""
    with ExitStack() as made:
        yield lambda **settings: made.enter_context(closing(Bench(root, dense, **always, **settings)))


def less_sure(dense: Path, root: Path) -> Bundle:
    """A later version of a bundle."""
    found = read_bundle(shutil.copytree(dense, root))
    return rewrite(found, {}, decision={**found.spec.decision, "temperature": 5.0})


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
    return parse_preprocess(read_bundle(dense).spec.preprocess)(read_image(BytesIO(content)))


def numbers(report: bytes) -> list[float]:
    """The measured values of a report, in its order."""
    dataset = pydicom.dcmread(BytesIO(report))
    return [float(element.value) for element in dataset.iterall() if element.keyword == "NumericValue"]
