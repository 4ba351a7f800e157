"""Storage commitment as its provider, by Orthanc and by pynetdicom: a promise only where nothing is ever deleted."""

from types import SimpleNamespace

import pydicom
import pytest
from box import storescu, wait_for
from doorway import doorway
from orthanc import Orthanc
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pynetdicom import AE, evt

from hscc_edge.serve.config import Listener, Retention
from hscc_edge.serve.doors import commitment_scp
from hscc_edge.serve.results.commitment import INSTANCE, PUSH_MODEL


@pytest.fixture
def files(phantom):
    return [phantom.path(item) for item in phantom.instances[:3]]


def references(files):
    found = [pydicom.dcmread(path, stop_before_pixels=True) for path in files]
    return [{"SOPClassUID": item.SOPClassUID, "SOPInstanceUID": item.SOPInstanceUID} for item in found]


def test_orthanc_gets_a_promise_for_what_is_here_and_reasons_for_the_rest(tmp_path, files):
    archive = Orthanc(tmp_path / "orthanc")
    peers = (f"ARCHIVE@127.0.0.1:{archive.port}",)
    with doorway(tmp_path, Listener(commitment=True, commitment_peers=peers)) as door:
        assert storescu(door.port, files) == set(files)
        archive.start()
        try:
            archive.edge(door.port)
            kept = references(files)
            unknown = {"SOPClassUID": kept[0]["SOPClassUID"], "SOPInstanceUID": generate_uid()}
            other_class = {**kept[0], "SOPClassUID": CTImageStorage}

            def report(items):
                asked = archive.post("/modalities/edge/storage-commitment", {"DicomInstances": items})
                assert wait_for(lambda: archive.get(asked["Path"])["Status"] != "Pending", 30)
                return archive.get(asked["Path"])

            found = report(kept)
            assert found["Status"] == "Success" and len(found["Success"]) == len(files)
            found = report([*kept[1:], unknown, other_class])
            assert found["Status"] == "Failure" and len(found["Success"]) == 2
            reasons = {item["SOPInstanceUID"]: item["FailureReason"] for item in found["Failures"]}
            assert reasons == {unknown["SOPInstanceUID"]: 0x0112, kept[0]["SOPInstanceUID"]: 0x0119}
        finally:
            archive.stop()
        assert door.rows("SELECT DISTINCT state FROM promises") == [("told",)]


def ask(port: int, items, title: str = "MODALITY"):
    """Ask by pynetdicom; (status of the answer, reports that came on the same association)."""
    reports = []

    def told(event):
        reports.append((event.event_type, event.event_information))
        return 0x0000, None

    entity = AE(title)
    entity.add_requested_context(PUSH_MODEL, ExplicitVRLittleEndian)
    peer = entity.associate("127.0.0.1", port, ae_title="HSCC_EDGE", evt_handlers=[(evt.EVT_N_EVENT_REPORT, told)])
    if not peer.accepted_contexts:
        peer.abort()
        return None, reports
    request = pydicom.Dataset()
    request.TransactionUID = generate_uid()
    request.ReferencedSOPSequence = []
    for item in items:
        reference = pydicom.Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = item.values()
        request.ReferencedSOPSequence.append(reference)
    answer, _ = peer.send_n_action(request, 1, PUSH_MODEL, INSTANCE)
    if answer.Status == 0x0000:
        assert wait_for(lambda: bool(reports), 20)
    peer.release()
    return answer.Status, reports


@pytest.mark.parametrize(
    ("retention", "reasons"),
    [(Retention(), []), (Retention(keep_days=30), [0x0213] * 3), (Retention(max_gib=1), [0x0213] * 3)],
)
def test_only_never_deleting_retention_promises(tmp_path, files, retention, reasons):
    with doorway(tmp_path, Listener(commitment=True), retention=retention) as door:
        storescu(door.port, files)
        status, [(kind, report)] = ask(door.port, references(files))
    assert (status, kind) == (0x0000, 2 if reasons else 1)
    assert [item.FailureReason for item in report.get("FailedSOPSequence", ())] == reasons
    assert len(report.get("ReferencedSOPSequence", ())) == (0 if reasons else 3)


def test_a_file_that_is_damaged_is_not_promised(tmp_path, files):
    with doorway(tmp_path, Listener(commitment=True)) as door:
        storescu(door.port, files[:1])
        (path,) = door.kept()
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        _, [(kind, report)] = ask(door.port, references(files[:1]))
    assert kind == 2 and report.FailedSOPSequence[0].FailureReason == 0x0110


def test_without_an_association_no_file_is_read(tmp_path, monkeypatch):
    read: list[object] = []
    monkeypatch.setattr(commitment_scp, "report", lambda *arguments: read.append(arguments))
    with doorway(tmp_path, Listener(commitment=True)) as door:
        with door.journal.transaction() as db:
            db.execute(
                "INSERT INTO promises (transaction_uid, peer, asked, next_tick, state) "
                "VALUES ('1.2.3', 'MODALITY', '[[\"1.2.4\", \"1.2.5\"]]', 0, 'open')"
            )
        given = commitment_scp.promise(door.journal, 1)
        assert given is not None
        gone = SimpleNamespace(is_established=False)
        commitment_scp.tell(door.station, door.journal, door.station.spool(), given, gone)
        assert door.rows("SELECT state, attempts FROM promises") == [("open", 1)]
    assert not read


def test_it_is_off_by_default_and_an_empty_request_is_refused(tmp_path, files):
    with doorway(tmp_path / "off") as door:
        assert ask(door.port, references(files)) == (None, [])
    with doorway(tmp_path / "on", Listener(commitment=True)) as door:
        assert ask(door.port, []) == (0x0120, [])
