"""The worker alone: images of a study in batches, with the decisions and reports of single images."""

from io import BytesIO

import numpy as np
import pydicom
import pytest
from hscc_edge.serve.worker import Worker

from hscc_edge.bundle import read_bundle
from hscc_edge.errors import ConfigError
from hscc_edge.runtime import open_runtime
from hscc_edge.serve.config import Config, Destination, _check
from hscc_edge.serve.content import digest_of
from hscc_edge.serve.journal import NO_RESULT, REPORTED, Journal
from hscc_edge.serve.spool import Spool


class Watched:
    """A real runtime, and the sizes of the batches that it was given."""

    def __init__(self, runtime) -> None:
        self._runtime, self.sizes, self.name = runtime, [], runtime.name

    def infer(self, images: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images))
        return self._runtime.infer(images)

    def close(self) -> None:
        self._runtime.close()


@pytest.fixture(scope="module")
def slices(phantom) -> list[bytes]:
    """Five slices of one study, the third undecodable."""
    items = [item for part in list(phantom.cases("study").values())[:2] for item in part][:5]
    found = []
    for number, item in enumerate(items):
        dataset = pydicom.dcmread(phantom.path(item))
        dataset.StudyInstanceUID, dataset.SOPInstanceUID = "1.2.3", f"1.2.3.{number}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        if number == 2:
            dataset.PixelData = dataset.PixelData[:100]
        buffer = BytesIO()
        dataset.save_as(buffer)
        found.append(buffer.getvalue())
    return found


def work(tmp_path, dense, slices, batch: int):
    """The report of the study, the states of its instances, and the sizes of the batches."""
    bundle = read_bundle(dense)
    config = Config(tmp_path, dense, Destination("A", "127.0.0.1", 4242), quiet_s=0.0, batch=batch)
    spool, journal, runtime = Spool(tmp_path / "spool"), Journal(tmp_path / "j"), Watched(open_runtime(bundle))
    for content in slices:
        header = pydicom.dcmread(BytesIO(content), stop_before_pixels=True)
        uids = header.SOPInstanceUID, digest_of(content), header.SeriesInstanceUID, header.StudyInstanceUID
        journal.receive(*uids, spool.keep(content))
    worker = Worker(config, bundle, runtime, journal, spool, b"k" * 32)
    try:
        assert worker.step() == 1
        states = [(row.sop, row.state, row.reason) for row in journal.instances("1.2.3")]
        return journal.current_report("1.2.3").content, states, runtime.sizes
    finally:
        worker.close()
        journal.close()


def numbers(report: bytes) -> list[float]:
    """The measured values of a report, in its order."""
    dataset = pydicom.dcmread(BytesIO(report))
    return [float(element.value) for element in dataset.iterall() if element.keyword == "NumericValue"]


@pytest.fixture(scope="module")
def alone(dense, slices, tmp_path_factory):
    """What one image a call gives."""
    return work(tmp_path_factory.mktemp("alone"), dense, slices, 1)


def test_an_image_a_call_is_the_default(alone, dense, tmp_path):
    assert Config(tmp_path, dense, Destination("A", "127.0.0.1", 4242)).batch == 1 and alone[2] == [1, 1, 1, 1]


@pytest.mark.parametrize(("batch", "sizes"), [(2, [2, 2]), (3, [3, 1]), (9, [4])])
def test_slices_come_in_batches_and_the_decision_stays(batch, sizes, alone, dense, slices, tmp_path):
    report, states, seen = work(tmp_path, dense, slices, batch)
    assert seen == sizes and states == alone[1]
    assert [state for _, state, _ in states].count(REPORTED) == 4
    assert states[2][1:] == (NO_RESULT, "cannot be decoded")
    assert numbers(report) == pytest.approx(numbers(alone[0]), abs=1e-5) and len(numbers(report)) >= 4


@pytest.mark.parametrize("batch", [0, -1, 1025])
def test_a_batch_out_of_range_is_told(batch, tmp_path):
    with pytest.raises(ConfigError, match=f"batch is {batch}: expected 1 to 1024"):
        _check(Config(tmp_path, tmp_path, Destination("A", "127.0.0.1", 4242), batch=batch))
