"""Storage commitment: a result counts as delivered when the archive has promised to keep it, however it answers."""

import gc
from dataclasses import replace

import pytest
from outgoing import QUICK, Desk, answer_to, committing, decided
from pynetdicom import AE, evt

from hscc_edge.serve import outbox
from hscc_edge.serve.results.commitment import INSTANCE, LINGER_S, PUSH_MODEL, on_event_report
from hscc_edge.serve.results.delivery import Courier
from hscc_edge.serve.timeline import timeline

pytestmark = pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    yield
    gc.collect()


def desk_for(root, port: int, **changes) -> Desk:
    settings = {"commitment": True, "commitment_s": 30.0, **changes}
    return Desk(root, replace(QUICK, port=port, **settings))


def courier(desk: Desk) -> Courier:
    return Courier(desk.station, desk.journal, desk.station.config.destination[0])


@pytest.fixture
def soon(monkeypatch):
    """No waiting for an answer on the association of the request."""
    monkeypatch.setattr("hscc_edge.serve.results.commitment.LINGER_S", 0.0)


def test_an_answer_on_the_same_association_makes_it_delivered(tmp_path):
    with committing(answers=True) as (port, kept, requests):
        desk = desk_for(tmp_path, port)
        first, second = desk.report("1.2.1"), desk.report("1.2.2")
        assert courier(desk).step() == 2
    assert desk.counts() == {"delivered": 2} and len(kept) == 2
    (request,) = requests
    assert {item.ReferencedSOPInstanceUID for item in request.ReferencedSOPSequence} == {first.sop, second.sop}
    assert {item.ReferencedSOPClassUID for item in request.ReferencedSOPSequence} == {kept[0].SOPClassUID}
    assert [event.kind for event in timeline(desk.journal, "1.2.1")] == ["reported", "sent", "committed"]
    assert desk.journal.read("SELECT COUNT(*) FROM asks") == [(0,)]


def test_until_the_answer_comes_it_is_stored_and_the_answer_may_come_twice(tmp_path, soon):
    with committing() as (port, _, requests):
        desk = desk_for(tmp_path, port)
        desk.report()
        courier(desk).step()
    assert desk.counts() == {"stored": 1}
    for _ in range(2):
        assert on_event_report(desk.journal, desk.station, answer_to(requests[0])) == 0x0000
        assert desk.counts() == {"delivered": 1}
    assert [event.kind for event in timeline(desk.journal, "1.2.3")] == ["reported", "sent", "committed"]


def test_what_is_not_committed_is_stored_again(tmp_path, soon):
    with committing() as (port, kept, requests):
        desk = desk_for(tmp_path, port, attempts=10)
        lost, safe = desk.report("1.2.1"), desk.report("1.2.2")
        found = courier(desk)
        found.step()
        assert on_event_report(desk.journal, desk.station, answer_to(requests[0], {lost.sop: 0x0112})) == 0x0000
        assert desk.counts() == {"pending": 1, "delivered": 1}
        assert "not committed, failure reason 0x0112" in desk.reasons()
        found.step()
        assert on_event_report(desk.journal, desk.station, answer_to(requests[1])) == 0x0000
    assert [item.SOPInstanceUID for item in kept] == [lost.sop, safe.sop, lost.sop]
    assert desk.counts() == {"delivered": 2}


def test_without_an_answer_it_is_asked_again_and_a_late_answer_to_the_first_request_counts(tmp_path, soon):
    with committing() as (port, kept, requests):
        desk = desk_for(tmp_path, port, commitment_s=0.0)
        desk.report()
        found = courier(desk)
        found.step(), found.step()
        assert len(requests) == 2 and len(kept) == 1
        assert requests[0].TransactionUID != requests[1].TransactionUID
        assert on_event_report(desk.journal, desk.station, answer_to(requests[0])) == 0x0000
    assert desk.counts() == {"delivered": 1}


def test_what_is_never_committed_is_a_dead_letter_that_a_late_answer_brings_back(tmp_path, soon):
    with committing() as (port, _, requests):
        desk = desk_for(tmp_path, port, commitment_s=0.0, attempts=3)
        desk.report()
        found = courier(desk)
        for _ in range(4):
            found.step()
        assert desk.counts() == {"dead": 1} and desk.reasons() == ["never committed"]
        on_event_report(desk.journal, desk.station, answer_to(requests[-1]))
    assert desk.counts() == {"delivered": 1}


@pytest.mark.parametrize("status", [0x0110, 0x0213])
def test_a_request_that_is_refused_is_made_again(tmp_path, soon, status):
    with committing(status) as (port, kept, requests):
        desk = desk_for(tmp_path, port, attempts=50)
        desk.report()
        found = courier(desk)
        while len(requests) < 3:
            found.step()
            desk.station.stop.wait(0.02)
    assert desk.counts() == {"stored": 1} and len(kept) == 1
    (attempts,) = desk.journal.read("SELECT attempts FROM deliveries")[0]
    assert attempts == (4 if status == 0x0110 else 1)


def test_an_answer_to_somebody_else_s_request_changes_nothing(tmp_path, soon):
    with committing() as (port, _, requests):
        desk = desk_for(tmp_path, port)
        desk.report()
        courier(desk).step()
    stranger = answer_to(requests[0])
    stranger.TransactionUID = "1.2.3.4"
    assert on_event_report(desk.journal, desk.station, stranger) == 0x0000
    assert desk.counts() == {"stored": 1}
    del stranger.TransactionUID
    assert on_event_report(desk.journal, desk.station, stranger) == 0x0120


def test_the_next_report_of_a_study_waits_for_the_commitment_of_the_one_before(tmp_path, soon):
    with committing() as (port, kept, requests):
        desk = desk_for(tmp_path, port)
        first, second = desk.report(), desk.report(case=decided(count=3))
        found = courier(desk)
        found.step(), found.step()
        assert [item.SOPInstanceUID for item in kept] == [first.sop]
        on_event_report(desk.journal, desk.station, answer_to(requests[0]))
        found.step()
    assert [item.SOPInstanceUID for item in kept] == [first.sop, second.sop]


def test_an_answer_on_a_new_association_reaches_the_journal(tmp_path, soon):
    with committing() as (port, _, requests):
        desk = desk_for(tmp_path, port)
        desk.report()
        courier(desk).step()
    own = AE("HSCC_EDGE")
    own.add_supported_context(PUSH_MODEL, scu_role=True, scp_role=True)

    def answered(event):
        return on_event_report(desk.journal, desk.station, event.event_information), None

    server = own.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, answered)])
    try:
        peer = AE("ARCHIVE")
        peer.add_requested_context(PUSH_MODEL)
        from pynetdicom import build_role

        association = peer.associate(
            "127.0.0.1", server.server_address[1], ext_neg=[build_role(PUSH_MODEL, scp_role=True)]
        )
        status, _ = association.send_n_event_report(answer_to(requests[0]), 1, PUSH_MODEL, INSTANCE)
        association.release()
    finally:
        server.shutdown()
    assert status.Status == 0x0000 and desk.counts() == {"delivered": 1}
    assert outbox.awaiting(desk.journal, "archive") == [] and LINGER_S > 0
