"""The one intake: what is kept is on disk and in the journal, what is refused leaves nothing."""

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from hscc_edge.serve import instances
from hscc_edge.serve.config import Config, Listener, ServedModel
from hscc_edge.serve.doors.admission import Admission
from hscc_edge.serve.doors.content import digest_of
from hscc_edge.serve.station import Station


@pytest.fixture
def dataset(phantom):
    return pydicom.dcmread(phantom.path(phantom.instances[0]))


class Door:
    """A station whose intake is called without a network."""

    def __init__(self, root, **settings):
        listener = settings.pop("dicom", Listener())
        config = Config(root / "state", (ServedModel(root),), dicom=listener, **{"reserve_mib": 0, **settings})
        (root / "state").mkdir()
        self.station = Station(config, b"k" * 32)
        self.journal, self.spool = self.station.journal(), self.station.spool()
        self.admission = Admission(self.station, self.journal, self.spool)

    def put(self, dataset, **named):
        draft = self.spool.draft()
        dataset.save_as(draft)
        return self.admission.admit(draft, door="folder", first_byte=1.0, **named)

    def close(self):
        self.admission.close()
        self.journal.close()


@pytest.fixture
def door(tmp_path):
    found = Door(tmp_path)
    yield found
    found.close()


def test_what_is_kept_has_a_row_and_a_file_with_its_digest(door, dataset):
    verdict = door.put(dataset)
    assert (verdict.status, verdict.reason, verdict.study) == (0x0000, "kept", dataset.StudyInstanceUID)
    (row,) = instances.of_study(door.journal, dataset.StudyInstanceUID)
    assert digest_of(door.spool.path(row.file).read_bytes()) == row.digest
    assert not list(door.spool.drafts.iterdir())


def test_the_same_object_again_in_this_or_another_encoding_is_known(door, dataset):
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    door.put(dataset)
    assert door.put(dataset).reason == "known"
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    other = pydicom.dcmread(dataset.filename)
    other.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    assert door.put(other).reason == "known"
    assert instances.counts(door.journal) == {"received": 1}
    assert len(list(door.spool.root.iterdir())) == 1 and not list(door.spool.drafts.iterdir())


def test_a_refused_object_leaves_nothing(door, dataset):
    assert door.put(dataset, sop_class="1.2.840.10008.5.1.4.1.1.2").status == 0xA900
    assert door.put(dataset, sop=generate_uid()).status == 0xC000
    del dataset.SeriesInstanceUID
    assert door.put(dataset).status == 0xC000
    assert not list(door.spool.root.iterdir()) and not list(door.spool.drafts.iterdir())
    assert instances.counts(door.journal) == {}
