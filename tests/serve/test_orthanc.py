"""A real PACS: Orthanc takes the results, commits to them, and is killed and started again in between."""

import gc
import sqlite3
from io import BytesIO

import pydicom
import pytest
from box import Box, storescu, wait_for
from orthanc import Orthanc, orthanc
from outgoing import Desk, decided
from pydicom.uid import Comprehensive3DSRStorage, EnhancedSRStorage
from pynetdicom import AE, evt

from hscc_edge.serve.config import Destination
from hscc_edge.serve.results.commitment import PUSH_MODEL, on_event_report
from hscc_edge.serve.results.delivery import Courier

pytestmark = pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    yield
    gc.collect()


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    with orthanc(tmp_path_factory.mktemp("orthanc")) as found:
        yield found


class Ear:
    """What hears the archive's commitment reports in the place of the intake."""

    def __init__(self, pacs: Orthanc, desk: Desk) -> None:
        entity = AE("HSCC_EDGE")
        entity.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)
        self.answers = 0

        def answered(event):
            self.answers += 1
            return on_event_report(desk.journal, desk.station, event.event_information), None

        self.server = entity.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, answered)]
        )
        pacs.edge(self.server.server_address[1])


@pytest.fixture
def desk(pacs, tmp_path, monkeypatch):
    monkeypatch.setattr("hscc_edge.serve.results.commitment.LINGER_S", 0.0)
    found = Desk(tmp_path, pacs.destination(commitment=True, commitment_s=2.0, attempts=1000))
    ear = Ear(pacs, found)
    yield found
    ear.server.shutdown()


def ours(pacs: Orthanc, desk: Desk) -> list[str]:
    """What it keeps of this test's reports."""
    wanted = {row[0] for row in desk.journal.read("SELECT sop FROM reports")}
    return [sop for sop in pacs.sops() if sop in wanted]


def steps(courier: Courier, desk: Desk) -> None:
    """Step until everything is delivered."""

    def done() -> bool:
        courier.step()
        return desk.counts().keys() == {"delivered"}

    assert wait_for(done), f"still open: {desk.counts()} {desk.reasons()}"


def test_it_stores_commits_and_returns_the_same_bytes(pacs, desk):
    reports = [desk.report(f"1.2.10.{number}") for number in range(3)]
    steps(Courier(desk.station, desk.journal, desk.station.config.destination[0]), desk)
    assert ours(pacs, desk) == sorted(report.sop for report in reports)
    kept = pydicom.dcmread(BytesIO(pacs.file(reports[0].sop)))
    assert kept == pydicom.dcmread(BytesIO(reports[0].content)) and kept.SOPClassUID == Comprehensive3DSRStorage
    assert {row[0] for row in desk.journal.read("SELECT kind FROM events")} == {"reported", "sent", "committed"}


def test_killed_between_store_and_commitment_and_while_it_stores_nothing_is_lost_or_doubled(pacs, desk):
    courier = Courier(desk.station, desk.journal, desk.station.config.destination[0])
    for number in range(4):
        desk.report(f"1.2.20.{number}")
    destination = desk.station.config.destination[0]
    without = Courier(desk.station, desk.journal, Destination(**{**as_dict(destination), "commitment_s": 0.0}))
    without._ask = lambda items: None  # stored, and not yet asked for
    assert without.step() == 4 and desk.counts() == {"stored": 4}
    pacs.kill()
    for number in range(4, 8):
        desk.report(f"1.2.20.{number}")
    for _ in range(4):
        courier.step()
    assert "pending" in desk.counts() and "dead" not in desk.counts()
    pacs.start()
    steps(courier, desk)
    assert desk.counts() == {"delivered": 8}
    assert ours(pacs, desk) == sorted(row[0] for row in desk.journal.read("SELECT sop FROM reports"))


def as_dict(destination: Destination) -> dict[str, object]:
    return {name: getattr(destination, name) for name in Destination.__dataclass_fields__}


def test_what_it_has_lost_is_not_committed_and_is_stored_again(pacs, desk):
    report = desk.report("1.2.30")
    courier = Courier(desk.station, desk.journal, desk.station.config.destination[0])
    courier._ask, ask = lambda items: None, courier._ask
    assert courier.step() == 1
    pacs.remove(report.sop)
    assert ours(pacs, desk) == []
    courier._ask = ask
    steps(courier, desk)
    assert ours(pacs, desk) == [report.sop]
    assert any(event == ("failed",) for event in desk.journal.read("SELECT kind FROM events"))


def test_every_form_of_dicom_by_c_store_and_by_stow(pacs, tmp_path):
    forms = ("comprehensive-3d-sr", "enhanced-sr", "secondary-capture", "key-object")
    web = Destination(name="web", kind="stow", url=f"{pacs.url}/dicom-web", forms=forms, timeout_s=10.0)
    desk = Desk(tmp_path, pacs.destination(forms=forms), web)
    desk.report("1.2.40")
    before = set(pacs.sops())
    for number in (0, 1):
        courier = Courier(desk.station, desk.journal, desk.station.config.destination[number])
        steps_of = len(forms)
        while steps_of:
            steps_of -= courier.step()
        if number == 0:
            after = set(pacs.sops())
            assert len(after - before) == 4
    assert set(pacs.sops()) == after and desk.counts() == {"delivered": 8}
    kinds = {pydicom.dcmread(BytesIO(pacs.file(sop)), stop_before_pixels=True).SOPClassUID for sop in after - before}
    assert {Comprehensive3DSRStorage, EnhancedSRStorage} < kinds and len(kinds) == 4


def test_a_late_slice_and_a_no_result_are_seen_there_as_a_chain(pacs, desk):
    courier = Courier(desk.station, desk.journal, desk.station.config.destination[0])
    first = desk.report("1.2.50")
    second = desk.report("1.2.50", decided("1.2.50", count=3))
    third = desk.report("1.2.50", decided("1.2.50", None, 4, "unlike what the model was calibrated on (so)"))
    steps(courier, desk)
    for new, old in ((second, first), (third, second)):
        dataset = pydicom.dcmread(BytesIO(pacs.file(new.sop)))
        named = dataset.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert named.ReferencedSOPInstanceUID == old.sop


def test_the_daemon_delivers_to_it_and_hears_its_commitment_at_its_own_door(pacs, phantom, dense, tmp_path):
    studies = [[phantom.path(item) for item in items] for items in list(phantom.cases("study").values())[:2]]
    station = Box(tmp_path, dense, pacs.port, more="commitment = true\ncommitment_s = 2.0\npause_s = 0.2")
    before = set(pacs.sops())

    def states() -> dict[str, int]:
        with sqlite3.connect(tmp_path / "state" / "journal.sqlite") as db:
            return dict(db.execute("SELECT state, COUNT(*) FROM deliveries GROUP BY state").fetchall())

    with station.running() as own:
        pacs.edge(own)
        storescu(own, studies[0])
        assert wait_for(lambda: states() == {"delivered": 1})
        pacs.kill()
        storescu(own, studies[1])
        assert wait_for(lambda: states() == {"delivered": 1, "pending": 1})
        pacs.start()
        assert wait_for(lambda: states() == {"delivered": 2})
    assert len(set(pacs.sops()) - before) == 2
    assert station.log.read_text().count("event=committed") == 2
