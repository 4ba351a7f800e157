"""Delivery to peers that refuse, hang, fail or die: nothing is lost, nothing waits for another, order is kept."""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from box import wait_for
from outgoing import QUICK, Desk, archive, committing, decided
from pydicom.uid import Comprehensive3DSRStorage, EnhancedSRStorage

from hscc_edge.serve import outbox
from hscc_edge.serve.results.breaker import TRIPS, Breaker, back_off_s, failed
from hscc_edge.serve.results.delivery import Courier
from hscc_edge.serve.results.storage_user import PLAIN, association
from hscc_edge.serve.timeline import timeline

# pynetdicom leaves the socket of a connection that failed to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def collected():
    yield
    gc.collect()


def courier(desk: Desk, number: int = 0) -> Courier:
    return Courier(desk.station, desk.journal, desk.station.config.destination[number])


def steps(found: Courier, desk: Desk) -> None:
    """Step until nothing is open."""

    def done() -> bool:
        if not {"pending", "stored"} & desk.counts().keys():
            return True
        found.step()
        return False

    assert wait_for(done), f"still open: {desk.counts()} {desk.reasons()}"


def test_what_is_due_goes_over_one_association(tmp_path):
    seen = []

    def on_store(event):
        seen.append(id(event.assoc))
        return 0x0000

    with archive(on_store) as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        for number in range(5):
            desk.report(f"1.2.{number}")
        assert courier(desk).step() == 5
    assert len(kept) == 5 and len(set(seen)) == 1
    assert desk.counts() == {"delivered": 5}
    assert [event.kind for event in timeline(desk.journal, "1.2.3")] == ["reported", "sent"]


def test_no_write_waits_for_the_peer_to_acknowledge_the_one_before():
    contexts = [(Comprehensive3DSRStorage, PLAIN)]
    with archive() as (port, _), association(replace(QUICK, port=port), "HSCC_EDGE", contexts) as peer:
        assert peer.dul.socket.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0x0111])
def test_a_warning_and_a_duplicate_count_as_taken(tmp_path, status):
    with archive(lambda event: status) as (port, _):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        desk.report()
        assert courier(desk).step() == 1
    assert desk.counts() == {"delivered": 1}


@pytest.mark.parametrize("status", [0xC000, 0xA900])
def test_what_is_refused_often_is_a_dead_letter_until_it_is_sent_again(tmp_path, status):
    answers = [status] * 3
    with archive(lambda event: answers.pop() if answers else 0) as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        report = desk.report()
        found = courier(desk)
        steps(found, desk)
        assert desk.counts() == {"dead": 1} and desk.reasons() == [f"status {status:#06x}"] and not kept
        assert outbox.redrive(desk.journal, [99]) == 0
        assert outbox.redrive(desk.journal) == 1
        steps(found, desk)
    assert [item.SOPInstanceUID for item in kept] == [report.sop]
    assert [event.kind for event in timeline(desk.journal, "1.2.3")] == [
        "reported", "failed", "dead", "redriven", "sent",
    ]  # fmt: skip


def test_a_dead_letter_is_not_sent_after_a_later_report(tmp_path):
    answers = [0xC000] * 3
    with archive(lambda event: answers.pop() if answers else 0) as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        first, found = desk.report(), courier(desk)
        steps(found, desk)
        second = desk.report(case=decided(count=3))
        steps(found, desk)
        assert desk.counts() == {"dead": 1, "delivered": 1} and second.predecessor == first.sop
        assert outbox.redrive(desk.journal) == 0
        steps(found, desk)
    assert [item.SOPInstanceUID for item in kept] == [second.sop]
    assert desk.counts() == {"withheld": 1, "delivered": 1}
    assert timeline(desk.journal, "1.2.3")[-1].kind == "withheld"


def test_an_archive_without_room_is_asked_until_it_has_some_and_nothing_is_counted(tmp_path):
    answers = [0xA701] * (TRIPS + 2)
    with archive(lambda event: answers.pop() if answers else 0) as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port, attempts=1))
        desk.report()
        steps(courier(desk), desk)
    assert len(kept) == 1 and desk.counts() == {"delivered": 1}


def test_an_archive_that_is_away_costs_no_attempt_and_opens_the_circuit(tmp_path):
    with archive() as (port, _):
        pass
    desk = Desk(tmp_path, replace(QUICK, port=port, attempts=1))
    desk.report("1.2.1"), desk.report("1.2.2")
    found = courier(desk)
    while desk.journal.fact("circuit.archive") != "open":
        found.step()
    assert desk.counts() == {"pending": 2}
    assert {row[0] for row in desk.journal.read("SELECT attempts FROM deliveries")} == {0}


def test_once_the_circuit_is_open_one_object_probes_it(tmp_path):
    with archive() as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        desk.report("1.2.1"), desk.report("1.2.2")
        found = courier(desk)
        found._breaker = Breaker(TRIPS, 0.0)
        assert found.step() == 1 and desk.journal.fact("circuit.archive") == "closed"
        assert found.step() == 1
    assert len(kept) == 2


def test_waits_grow_up_to_a_limit_with_jitter_and_pause_once_the_circuit_is_open():
    wanted = replace(QUICK, first_retry_s=1.0, last_retry_s=8.0, pause_s=100.0)
    waits = [[back_off_s(wanted, attempts) for _ in range(50)] for attempts in range(6)]
    for attempts, found in enumerate(waits):
        top = min(2.0**attempts, 8.0)
        assert top / 2 <= min(found) and max(found) <= top and len(set(found)) > 10
    breaker = Breaker()
    for _ in range(TRIPS):
        breaker = failed(breaker, wanted, 0.0)
    assert breaker.open and not breaker.ready(89.0) and breaker.ready(111.0)


def test_a_peer_that_dies_in_the_middle_of_a_store_gets_the_same_bytes_again(tmp_path):
    first = []

    def on_store(event):
        if not first:
            first.append(event.dataset.SOPInstanceUID)
            event.assoc.abort()
        return 0x0000

    with archive(on_store) as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        report = desk.report()
        steps(courier(desk), desk)
    assert first == [report.sop] and kept[-1].SOPInstanceUID == report.sop
    assert desk.counts() == {"delivered": 1}


def test_an_archive_that_hangs_delays_no_other(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as deaf, archive() as (port, kept):
        slow = replace(QUICK, name="deaf", port=deaf.getsockname()[1])
        desk = Desk(tmp_path, slow, replace(QUICK, port=port))
        for number in range(3):
            desk.report(f"1.2.{number}")
        couriers = [courier(desk, 0), courier(desk, 1)]
        for found in couriers:
            found.start()
        while len(kept) < 3:
            desk.station.stop.wait(0.02)
        desk.station.stop.set()
        assert not couriers[0].silent
    for found in couriers:
        found.join(20)
    waiting = desk.journal.read("SELECT destination, COUNT(*) FROM deliveries WHERE state = 'pending' GROUP BY 1")
    assert waiting == [("deaf", 3)]


def test_at_a_reload_the_new_process_waits_for_the_old_one(tmp_path):
    with archive() as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        desk.report()
        old, new = courier(desk), courier(desk)
        with old._turn():
            new.start()
            desk.station.stop.wait(0.5)
            assert desk.counts() == {"pending": 1} and not new.silent
        while desk.counts() != {"delivered": 1}:
            desk.station.stop.wait(0.02)
        desk.station.stop.set()
        new.join(10)
    assert len(kept) == 1


def test_a_peer_that_never_answers_a_store_counts_and_the_next_object_is_tried(tmp_path):
    hold, asked = threading.Event(), []

    def on_store(event):
        asked.append(event.dataset.SOPInstanceUID)
        if len(asked) == 1:
            hold.wait(60)
        return 0x0000

    with archive(on_store) as (port, _):
        desk = Desk(tmp_path, replace(QUICK, port=port, timeout_s=1.0, attempts=100))
        desk.report("1.2.1"), desk.report("1.2.2")
        found = courier(desk)
        while not asked:
            found.step()
        assert desk.journal.read("SELECT attempts, reason FROM deliveries WHERE id = 1") == [(1, "no answer")]
        hold.set()
        steps(found, desk)
    assert desk.counts() == {"delivered": 2} and len(set(asked)) == 2


def test_a_study_s_reports_arrive_in_their_order(tmp_path):
    answers = [0xA700]
    with archive(lambda event: answers.pop() if answers else 0) as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        first, second = desk.report(), desk.report(case=decided(count=3))
        found = courier(desk)
        assert found.step() == 0
        steps(found, desk)
    assert [item.SOPInstanceUID for item in kept] == [first.sop, second.sop]


COURIER = """
import sys
from pathlib import Path
from outgoing import QUICK, Desk
from dataclasses import replace
from hscc_edge.serve.results.delivery import Courier

commitment = sys.argv[3] == "commitment"
desk = Desk(Path(sys.argv[1]), replace(QUICK, port=int(sys.argv[2]), commitment=commitment, commitment_s=0.1))
courier = Courier(desk.station, desk.journal, desk.station.config.destination[0])
while {"pending", "stored"} & desk.counts().keys():
    courier.step()
"""


@pytest.mark.parametrize(
    ("point", "kind"),
    [
        ("delivery-begun", "plain"), ("delivery-answered", "plain"), ("delivery-noted", "plain"),
        ("commitment-asked", "commitment"), ("commitment-answered", "commitment"),
    ],
)  # fmt: skip
def test_killed_at_any_step_every_report_arrives_and_is_the_same_object(tmp_path, point, kind):
    with committing(answers=True) as (port, kept, _):
        desk = Desk(tmp_path, replace(QUICK, port=port, commitment=kind == "commitment", commitment_s=0.1))
        reports = [desk.report(f"1.2.{number}") for number in range(2)]
        killed = subprocess.run(
            [sys.executable, "-c", COURIER, str(tmp_path), str(port), kind],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "HSCC_EDGE_CRASH": f"{point}:1"},
            start_new_session=True, timeout=120,
        )  # fmt: skip
        assert killed.returncode == -signal.SIGKILL
        steps(courier(desk), desk)
    assert desk.counts() == {"delivered": 2}
    assert {item.SOPInstanceUID for item in kept} == {report.sop for report in reports}
    originals = {report.sop: pydicom.dcmread(BytesIO(report.content)) for report in reports}
    assert all(item == originals[item.SOPInstanceUID] for item in kept)


def test_an_archive_that_knows_no_comprehensive_3d_sr_gets_an_enhanced_one(tmp_path):
    with archive(classes=(EnhancedSRStorage,)) as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        first, second = desk.report(), desk.report(case=decided(count=3))
        steps(courier(desk), desk)
    assert [item.SOPClassUID for item in kept] == [EnhancedSRStorage] * 2
    assert not {item.SOPInstanceUID for item in kept} & {first.sop, second.sop}
    named = kept[1].PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert named.ReferencedSOPInstanceUID == kept[0].SOPInstanceUID
    assert named.ReferencedSOPClassUID == EnhancedSRStorage


def test_an_archive_that_may_have_stored_the_report_gets_no_second_one_unasked(tmp_path):
    def dies(event):
        event.assoc.abort()
        return 0x0000

    with archive(dies) as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        desk.report()
        courier(desk).step()
        assert len(kept) == 1 and desk.reasons() == ["no answer"]
    with archive(classes=(EnhancedSRStorage,)) as (port, others):
        again = Courier(desk.station, desk.journal, replace(QUICK, port=port))
        steps(again, desk)
        assert desk.counts() == {"dead": 1} and not others
        outbox.redrive(desk.journal)  # a person has looked
        steps(again, desk)
    assert desk.counts() == {"delivered": 1} and [item.SOPClassUID for item in others] == [EnhancedSRStorage]


def test_an_archive_that_knows_no_sr_at_all_leaves_a_dead_letter(tmp_path):
    with archive(classes=("1.2.840.10008.5.1.4.1.1.4",)) as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        desk.report()
        steps(courier(desk), desk)
    assert desk.counts() == {"dead": 1} and desk.reasons() == ["no presentation context accepted"] and not kept


def test_a_courier_that_meets_a_broken_object_goes_on_with_the_others(tmp_path):
    with archive() as (port, kept):
        desk = Desk(tmp_path, replace(QUICK, port=port))
        desk.report("1.2.1"), desk.report("1.2.2")
        with desk.journal.transaction() as db:
            db.execute("UPDATE deliveries SET content = ? WHERE id = 1", (b"no DICOM",))
        steps(courier(desk), desk)
    assert desk.counts() == {"dead": 1, "delivered": 1} and len(kept) == 1
    assert kept[0].SOPClassUID == Comprehensive3DSRStorage
