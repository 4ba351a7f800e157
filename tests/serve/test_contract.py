"""The daemon's contract with real peers: what is kept, what is refused, and where each instance ends."""

import json
import subprocess
import time

import pydicom
import pytest
from box import Box, storescu, wait_for
from outgoing import archive as refusing
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE

from hscc_edge.serve.config import Destination
from hscc_edge.serve.doors.receiver import receive
from hscc_edge.serve.results.storage_user import store


@pytest.fixture(scope="module")
def study(phantom):
    """The files of one study."""
    items = next(iter(phantom.cases("study").values()))
    return [phantom.path(item) for item in items]


@pytest.fixture
def archive(tmp_path):
    with receive(tmp_path / "archive") as port:
        yield tmp_path / "archive", port


def to(port: int) -> Destination:
    return Destination(ae_title="HSCC_EDGE", port=port)


def reports_in(directory) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(path) for path in sorted(directory.glob("*.dcm"))]


@pytest.fixture(scope="module")
def done(tmp_path_factory, study, dense):
    """(box, the archive's directory) of a daemon that has reported on one study, and has ended."""
    root = tmp_path_factory.mktemp("done")
    directory = root / "archive"
    with receive(directory) as port:
        station = Box(root, dense, port)
        with station.running() as own:
            assert storescu(own, study) == set(study)
            assert storescu(own, study[:1]) == set(study[:1])
            assert wait_for(lambda: len(list(directory.glob("*.dcm"))) == 1)
            time.sleep(1.0)
    return station, directory


def test_a_study_becomes_one_conformant_report(study, done):
    station, directory = done
    (report,) = reports_in(directory)
    assert station.states() == {"reported": len(study)}
    assert (report.PreliminaryFlag, report.VerificationFlag, report.CompletionFlag) == (
        "PRELIMINARY", "UNVERIFIED", "PARTIAL",
    )  # fmt: skip
    assert report.StudyInstanceUID == pydicom.dcmread(study[0]).StudyInstanceUID
    path = next(directory.glob("*.dcm"))
    checked = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    assert "Comprehensive3DSR" in checked.stdout + checked.stderr
    assert not [line for line in (checked.stdout + checked.stderr).splitlines() if line.startswith("Error")]
    text = subprocess.run(["dsrdump", str(path)], capture_output=True, text=True, check=True).stdout
    assert "Algorithm Version" in text and "Probability of" in text and text.count("MR image") == len(study)


def test_a_late_slice_supersedes_and_names_its_predecessor(tmp_path, study, dense, archive):
    directory, port = archive
    with Box(tmp_path, dense, port).running() as own:
        storescu(own, study[:2])
        assert wait_for(lambda: len(list(directory.glob("*.dcm"))) == 1)
        first = reports_in(directory)[0].SOPInstanceUID
        storescu(own, study[2:])
        assert wait_for(lambda: len(list(directory.glob("*.dcm"))) == 2)
    second = next(report for report in reports_in(directory) if report.SOPInstanceUID != first)
    series = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first


def test_too_few_images_out_of_scope_and_undecodable_end_without_result(tmp_path, study, dense, archive):
    directory, port = archive
    alone, ct, broken = (pydicom.dcmread(path) for path in (study[0], study[1], study[2]))
    ct.Modality = "CT"
    broken.PixelData = broken.PixelData[:100]
    for number, dataset in enumerate((alone, ct, broken)):
        dataset.StudyInstanceUID = generate_uid()
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.InstanceNumber = number
    station = Box(tmp_path, dense, port)
    with station.running() as own:
        assert store([alone, ct, broken], to(own), "TEST") == [0, 0, 0]
        assert wait_for(lambda: station.states() == {"no-result": 3})
    assert not reports_in(directory)
    import sqlite3

    with sqlite3.connect(tmp_path / "state" / "journal.sqlite") as db:
        reasons = {row[0] for row in db.execute("SELECT reason FROM instances")}
    assert reasons == {
        "1 images, the model needs at least 2", "out of scope: no route matches", "cannot be decoded",
    }  # fmt: skip


def test_same_uid_with_other_content_is_kept_apart(tmp_path, study, dense, archive):
    directory, port = archive
    other = pydicom.dcmread(study[0])
    other.PatientSex = "F" if other.PatientSex != "F" else "M"
    station = Box(tmp_path, dense, port)
    with station.running() as own:
        storescu(own, study)
        assert store([other], to(own), "TEST") == [0]
        assert wait_for(lambda: station.states() == {"reported": len(study), "conflict": 1})
        assert wait_for(lambda: len(reports_in(directory)) == 1)
    assert len(list((tmp_path / "state" / "spool").iterdir())) == len(study) + 1


def test_a_full_disk_is_refused_with_a700_and_nothing_is_kept(tmp_path, study, dense, archive):
    station = Box(tmp_path, dense, archive[1], reserve_mib=10**9)
    with station.running() as own:
        assert store([pydicom.dcmread(study[0])], to(own), "TEST") == [0xA700]
        assert storescu(own, study) == set()
    assert station.states() == {}
    assert not list((tmp_path / "state" / "spool").iterdir())


def test_a_wrong_class_is_refused_with_a900_and_no_uid_with_c000(tmp_path, study, dense, archive):
    dataset = pydicom.dcmread(study[0])
    station = Box(tmp_path, dense, archive[1])
    with station.running() as own:
        entity = AE("TEST")
        entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        entity.add_requested_context(dataset.SOPClassUID, ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", own, ae_title="HSCC_EDGE")
        assert association.is_established
        statuses = [send_raw(association, dataset, CTImageStorage)]
        del dataset.SeriesInstanceUID
        statuses.append(send_raw(association, dataset, dataset.SOPClassUID))
        association.release()
    assert statuses == [0xA900, 0xC000]
    assert station.states() == {}
    assert not list((tmp_path / "state" / "spool").iterdir())


def send_raw(association, dataset: pydicom.Dataset, sop_class: str) -> int:
    """C-STORE with an affected SOP class of one's own choice."""
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE
    from pynetdicom.dsutils import encode

    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = sop_class, dataset.SOPInstanceUID
    request.DataSet = BytesIO(encode(dataset, False, True))
    context = next(c for c in association.accepted_contexts if c.abstract_syntax == sop_class)
    association._reactor_checkpoint.clear()  # as association.send_c_store does, which sets the class by itself
    assert wait_for(lambda: association._is_paused)
    association.dimse.send_msg(request, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return int(answer.Status)


def test_a_dead_archive_is_retried_until_it_lives(tmp_path, study, dense):
    with receive(tmp_path / "archive") as port:
        pass
    station = Box(tmp_path, dense, port)
    with station.running() as own:
        storescu(own, study)
        assert wait_for(lambda: "event=delivery_failed" in station.log.read_text())
        with receive(tmp_path / "archive", port=port):
            assert wait_for(lambda: "event=delivered" in station.log.read_text())
    assert len(reports_in(tmp_path / "archive")) == 1


def test_a_refused_report_becomes_a_dead_letter(tmp_path, study, dense):
    with refusing(lambda event: 0xC000) as (port, kept):
        station = Box(tmp_path, dense, port, attempts=2)
        with station.running() as own:
            storescu(own, study)
            assert wait_for(lambda: "event=dead_letter" in station.log.read_text())
    status = json.loads((tmp_path / "state" / "daemon.json").read_text())
    assert status["port"] > 0 and not kept


def test_no_identifier_leaves_the_spool_and_the_journal(study, done):
    station, _ = done
    state = station.root / "state"
    dataset = pydicom.dcmread(study[0])
    secrets = [
        str(dataset.PatientName.family_name), dataset.PatientID, dataset.AccessionNumber, dataset.StudyInstanceUID,
        dataset.SOPInstanceUID, dataset.SeriesInstanceUID,
    ]  # fmt: skip
    assert station.states() == {"reported": len(study)}
    names = " ".join(str(path) for path in state.rglob("*"))
    for secret in secrets:
        for text in (station.log.read_text(), (state / "daemon.json").read_text(), names):
            assert secret not in text
    assert state.stat().st_mode & 0o777 == 0o700
