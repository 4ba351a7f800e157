"""ATNA: each event becomes its messages once, by the schema; a repository that was away gets them all."""

import re
import socket
import ssl
import time
from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

import pydicom
import pytest
from authority import Authority
from repository import receiving

from hscc_edge.serve import outbox, studies
from hscc_edge.serve.audit import audit, seal
from hscc_edge.serve.config import Audit, Config, Destination
from hscc_edge.serve.instances import REPORTED, Receipt, of_study, receive
from hscc_edge.serve.operations import atna
from hscc_edge.serve.operations.atna import Repository, deleted, enqueue
from hscc_edge.serve.operations.audit_message import xml
from hscc_edge.serve.operations.syslog import Sender, frame
from hscc_edge.serve.outbox import NewDelivery
from hscc_edge.serve.station import Station

CODED = {"csd-code", "codeSystemName", "originalText"}
# PS3.15 A.5.1: element -> its attributes, needed and allowed, and its children in order with how often they may come
ONE, SOME, ANY, MAYBE = (1, 1), (1, 999), (0, 999), (0, 1)
SCHEMA = {
    "AuditMessage": (set(), set(), [
        ("EventIdentification", ONE), ("ActiveParticipant", SOME), ("AuditSourceIdentification", ONE),
        ("ParticipantObjectIdentification", ANY),
    ]),
    "EventIdentification": (
        {"EventDateTime", "EventOutcomeIndicator"}, {"EventActionCode"},
        [("EventID", ONE), ("EventTypeCode", ANY), ("EventOutcomeDescription", MAYBE)],
    ),
    "EventID": (CODED, {"displayName"}, []),
    "EventTypeCode": (CODED, {"displayName"}, []),
    "ActiveParticipant": (
        {"UserID", "UserIsRequestor"},
        {"AlternativeUserID", "UserName", "NetworkAccessPointID", "NetworkAccessPointTypeCode"},
        [("RoleIDCode", ANY)],
    ),
    "RoleIDCode": (CODED, {"displayName"}, []),
    "AuditSourceIdentification": ({"AuditSourceID"}, {"AuditEnterpriseSiteID"}, [("AuditSourceTypeCode", ANY)]),
    "AuditSourceTypeCode": ({"csd-code"}, CODED, []),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID"},
        {"ParticipantObjectTypeCode", "ParticipantObjectTypeCodeRole", "ParticipantObjectDataLifeCycle"},
        [("ParticipantObjectIDTypeCode", ONE), ("ParticipantObjectName", ONE), ("ParticipantObjectDescription", ANY)],
    ),
    "ParticipantObjectIDTypeCode": (CODED, {"displayName"}, []),
    "ParticipantObjectName": (set(), set(), []),
    "ParticipantObjectDescription": (set(), set(), [("SOPClass", ANY)]),
    "SOPClass": ({"NumberOfInstances"}, {"UID"}, []),
}  # fmt: skip


def check(element: Element) -> None:
    needed, allowed, children = SCHEMA[element.tag]
    assert needed <= element.attrib.keys() <= needed | allowed, element.tag
    names, order = [child.tag for child in element], [name for name, _ in children]
    assert names == sorted(names, key=order.index), element.tag
    for name, (low, high) in children:
        assert low <= names.count(name) <= high, (element.tag, name)
    for child in element:
        check(child)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def tls(authority):
    return authority.sign("box")


@pytest.fixture
def station(tmp_path: Path) -> Station:
    destination = Destination(name="pacs", ae_title="PACS", host="10.0.0.9")
    return Station(Config(state=tmp_path / "state", model=(), destination=(destination,)), b"k" * 32)


@pytest.fixture
def journal(station):
    station.config.state.mkdir()
    opened = station.journal()
    yield opened
    opened.close()


def one_study(station: Station, journal, phantom) -> tuple[str, str, str]:
    """(study, patient's ID, patient's name) of a study that was received, worked on and sent."""
    item = phantom.instances[0]
    content = phantom.path(item).read_bytes()
    found = pydicom.dcmread(phantom.path(item), stop_before_pixels=True)
    name = station.spool().keep(content)
    study = str(found.StudyInstanceUID)
    receive(journal, [
        Receipt(str(found.SOPInstanceUID), str(found.SOPClassUID), "d", str(found.SeriesInstanceUID), study, name,
                len(content), "dimse", station.who(study), time.time()),
    ])  # fmt: skip
    studies.claim(journal, [study])
    studies.claim(journal, [study])
    report = studies.NewReport("tiny", "d" * 64, "1.2.3.4.5.6", content, {}, [NewDelivery("pacs", "sr")])
    studies.finish(journal, study, [(row.id, REPORTED, None) for row in of_study(journal, study)], [report])
    (delivery,) = outbox.due(journal, "pacs")
    outbox.stored(journal, delivery)
    outbox.delivered(journal, delivery, "committed")
    return study, str(found.PatientID), str(found.PatientName)


def waiting(journal) -> list[Element]:
    return [fromstring(content) for (content,) in journal.read("SELECT content FROM audit_messages ORDER BY id")]


def collect(station: Station, journal) -> int:
    """As the upkeep process does."""
    seal(station, journal)
    return atna.collect(station, journal)


def kinds(messages: list[Element]) -> list[tuple[str, str]]:
    found = [(item.find("EventIdentification/EventID"), item.find("EventIdentification")) for item in messages]
    return [(code.get("csd-code"), event.get("EventActionCode")) for code, event in found]


def test_a_study_s_way_is_told_and_names_the_patient(station, journal, phantom):
    study, patient, name = one_study(station, journal, phantom)
    assert collect(station, journal) == 3 and collect(station, journal) == 0
    with journal.transaction() as db:
        enqueue(db, [deleted(station, journal, study)])
    messages = waiting(journal)
    assert kinds(messages) == [("110104", "C"), ("110102", "E"), ("110104", "R"), ("110105", "D")]
    for message in messages:
        check(message)
        objects = {item.get("ParticipantObjectTypeCodeRole"): item for item in message.iter()}
        assert objects["3"].get("ParticipantObjectID") == study
        assert objects["1"].get("ParticipantObjectID") == patient
        assert objects["1"].findtext("ParticipantObjectName") == name
    sides = messages[1].findall("ActiveParticipant")
    assert [side.find("RoleIDCode").get("csd-code") for side in sides] == ["110153", "110152"]
    assert sides[1].get("AlternativeUserID") == "AETITLES=PACS" and sides[1].get("NetworkAccessPointTypeCode") == "2"
    (described,) = messages[0].iter("SOPClass")
    assert described.get("NumberOfInstances") == "1"


def test_what_people_and_peers_do_is_told(station, journal):
    audit(station, "started")
    audit(station, "login", account="anna", address="10.1.1.1")
    audit(station, "login-refused", account="eve\x00\ud800")
    audit(station, "association-refused", address="modality.example", reason="calling AE title")
    audit(station, "redrive", account="anna", chosen=3)
    audit(station, "stopped")
    audit(station, "model-rollback", account="anna", model="tiny", reason="drift")
    audit(station, "audit-broken", line=7)
    assert collect(station, journal) == 7
    messages = waiting(journal)
    for message in messages:
        check(message)
    types = [message.find("EventIdentification/EventTypeCode").get("csd-code") for message in messages]
    assert types == ["110120", "110122", "110122", "110126", "110121", "110131", "110135"]
    outcomes = [message.find("EventIdentification").get("EventOutcomeIndicator") for message in messages]
    assert outcomes == ["0", "0", "4", "4", "0", "0", "4"]


def test_lines_are_read_once_over_many_files(station, journal, monkeypatch):
    monkeypatch.setattr("hscc_edge.serve.audit.FULL_BYTES", 700)
    for number in range(30):
        audit(station, "login", account=f"a{number}")
        if number % 7 == 0:
            collect(station, journal)
    while collect(station, journal):
        pass
    users = [message.find("ActiveParticipant").get("UserID") for message in waiting(journal)]
    assert users == [f"a{number}" for number in range(30)]


def test_a_line_that_is_not_on_disk_yet_is_not_told(station, journal):
    audit(station, "association-refused", address="10.0.0.1", reason="limit")
    assert atna.collect(station, journal) == 0 and collect(station, journal) == 1


def fill(journal, station, count: int) -> None:
    for number in range(count):
        audit(station, "login", account=f"a{number}")
    while collect(station, journal):
        pass


def accounts(messages: list[bytes]) -> list[str]:
    return [re.search(rb'UserID="(\w+)"', item)[1].decode() for item in messages]


def settle(journal, repository: Repository, receiver, wanted: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and len(set(accounts(receiver.messages))) < wanted:
        repository._not_before = 0.0
        repository.send(journal)
        time.sleep(0.01)


def test_a_repository_that_was_away_gets_every_message(station, journal, authority, tls, caplog):
    with receiving(authority.sign("audit")) as receiver:
        port = receiver.port
    repository = Repository(Config(state=Path(), model=(), audit=Audit("127.0.0.1", port, tls)))
    fill(journal, station, 20)
    assert repository.send(journal) == 0 and len(waiting(journal)) == 20
    assert repository.send(journal) == 0 and caplog.text.count("audit_repository_away") == 1
    with receiving(authority.sign("audit"), port) as receiver:
        settle(journal, repository, receiver, 20)
        assert accounts(receiver.messages) == [f"a{number}" for number in range(20)]
        assert re.match(rb"<85>1 \S+Z \S+ hscc-edge \d+ DICOM\+RFC3881 - \xef\xbb\xbf<\?xml", receiver.messages[0])
    for number in range(3):  # it goes away in the middle of things
        fill(journal, station, 10)
        with receiving(authority.sign("audit"), port) as receiver:
            settle(journal, repository, receiver, 10)
            assert set(accounts(receiver.messages)) == {f"a{count}" for count in range(10)}, number
        assert not waiting(journal)
    repository.close()


def test_nothing_goes_to_a_stranger_and_nothing_of_a_stranger_is_taken(station, journal, authority, tls, tmp_path):
    stranger = Authority(tmp_path / "stranger", "stranger")
    fill(journal, station, 3)
    for server, client in ((stranger.sign("audit"), tls), (authority.sign("audit"), stranger.sign("box"))):
        mixed = type(client)(client.certificate, client.key, authority.certificate)
        with receiving(server) as receiver:
            repository = Repository(Config(state=Path(), model=(), audit=Audit("127.0.0.1", receiver.port, mixed)))
            for _ in range(3):
                repository._not_before = 0.0
                assert repository.send(journal) == 0
            assert receiver.messages == [] and len(waiting(journal)) == 3
            repository.close()


def test_a_repository_without_tls_gets_nothing(station, journal, tls):
    fill(journal, station, 1)
    with socket.create_server(("127.0.0.1", 0)) as door:
        sender = Sender("127.0.0.1", door.getsockname()[1], tls, timeout_s=0.3)
        with pytest.raises(OSError):
            sender.deliver([frame(b"<secret/>", 0.0)])
        door.settimeout(10)
        client, _ = door.accept()
        assert b"secret" not in client.recv(65536)
        client.close()


def test_a_repository_that_reads_no_more_is_told(authority, tls):
    """Its TCP window is full: what was sent is not taken."""
    server = authority.sign("audit")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=server.authorities)
    context.load_cert_chain(server.certificate, server.key)
    with receiving(server) as receiver:
        receiver._read = lambda client: time.sleep(1.5)
        sender = Sender("127.0.0.1", receiver.port, tls, timeout_s=0.5)
        with pytest.raises(OSError):
            sender.deliver([frame(b"x" * 30_000_000, 0.0)])


def test_what_xml_cannot_hold_is_left_out(station, journal):
    audit(station, "login", account="\x01\ufffe<&>\"'é")
    collect(station, journal)
    (message,) = waiting(journal)
    assert message.find("ActiveParticipant").get("UserID") == "<&>\"'é"


def test_an_unknown_study_is_told_without_its_patient(station, journal):
    check(fromstring(xml(deleted(station, journal, "1.2.3"))))
