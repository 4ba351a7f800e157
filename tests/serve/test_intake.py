"""The listening intake against real and against ill-mannered peers: limits, refusals, what is kept as it came."""

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
from io import BytesIO

import pydicom
import pytest
from box import storescu, wait_for
from doorway import doorway
from pydicom.data import get_testdata_file
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    generate_uid,
)
from pynetdicom import AE, build_context

from hscc_edge.serve.config import Listener, Study
from hscc_edge.serve.doors.content import digest_of
from hscc_edge.serve.doors.seats import Seats

PRIVATE = "1.2.826.0.1.3680043.9.9999.1.1"


@pytest.fixture
def files(phantom):
    return [phantom.path(item) for item in phantom.instances]


def dataset_of(path, **changed) -> pydicom.Dataset:
    found = pydicom.dcmread(path)
    for keyword, value in changed.items():
        setattr(found, keyword, value)
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID
    return found


def call(port: int, *contexts, title: str = "MODALITY", called: str = "HSCC_EDGE"):
    """An association by pynetdicom, or the rejected one."""
    entity = AE(title)
    entity.requested_contexts = list(contexts or (build_context(MRImageStorage, ExplicitVRLittleEndian),))
    return entity.associate("127.0.0.1", port, ae_title=called)


def rejection(peer) -> tuple[int, int, int]:
    """(result, source, reason) of PS3.8 table 9-21."""
    found = peer.acceptor.primitive
    assert peer.is_rejected
    return found.result, found.result_source, found.diagnostic


def send(peer, dataset) -> int:
    return int(peer.send_c_store(dataset).Status)


def test_eight_senders_at_once_are_kept_each_once_and_whole(tmp_path, files):
    with doorway(tmp_path) as door:
        parts = [files[number::8] for number in range(8)]
        done: list[set] = []
        senders = [threading.Thread(target=lambda part=part: done.append(storescu(door.port, part))) for part in parts]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert set().union(*done) == set(files)
        rows = door.rows("SELECT file, digest FROM instances")
        assert len(rows) == len(files) == len(door.kept())
        assert all(digest_of((tmp_path / "state" / "spool" / file).read_bytes()) == digest for file, digest in rows)
        assert not door.left()


def test_a_too_large_object_is_refused_while_the_association_goes_on(tmp_path, files):
    large = dataset_of(files[0], SOPInstanceUID=generate_uid(), Rows=800, Columns=800, PixelData=bytes(800 * 800 * 2))
    with doorway(tmp_path, Listener(max_object_mib=1)) as door:
        peer = call(door.port)
        assert [send(peer, item) for item in (large, dataset_of(files[0]))] == [0xA700, 0x0000]
        peer.release()
        assert len(door.rows()) == len(door.kept()) == 1 and not door.left()
        assert wait_for(lambda: door.rows("SELECT value FROM counters WHERE name = 'refused_a700'") == [(1,)], 10)


def test_what_waits_has_a_limit(tmp_path, files):
    with doorway(tmp_path, max_waiting=2) as door:
        assert storescu(door.port, files[:2]) == set(files[:2])
        assert wait_for(lambda: storescu(door.port, files[2:3]) == set(), 5)


def test_a_private_class_is_stored_unless_classes_are_named(tmp_path, files):
    private = dataset_of(files[0], SOPClassUID=PRIVATE)
    context = build_context(PRIVATE, ExplicitVRLittleEndian)
    with doorway(tmp_path / "any") as door:
        peer = call(door.port, context, build_context("1.2.840.10008.5.1.4.1.2.1.1", ExplicitVRLittleEndian))
        assert [found.abstract_syntax for found in peer.accepted_contexts] == [PRIVATE]
        assert send(peer, private) == 0x0000
        peer.release()
    with doorway(tmp_path / "named", Listener(sop_classes=("MRImageStorage",))) as door:
        peer = call(door.port, context, build_context(MRImageStorage, ExplicitVRLittleEndian))
        assert [found.abstract_syntax for found in peer.accepted_contexts] == [MRImageStorage]
        peer.release()


def test_the_senders_own_encoding_is_taken_and_kept(tmp_path):
    compressed = pydicom.dcmread(get_testdata_file("MR_small_RLE.dcm"))
    with doorway(tmp_path) as door:
        peer = call(
            door.port,
            build_context(MRImageStorage, [RLELossless, ExplicitVRLittleEndian]),
            build_context(CTImageStorage, [ImplicitVRLittleEndian, ExplicitVRLittleEndian]),
        )
        taken = {found.abstract_syntax: found.transfer_syntax[0] for found in peer.accepted_contexts}
        assert taken == {MRImageStorage: RLELossless, CTImageStorage: ImplicitVRLittleEndian}
        assert send(peer, compressed) == 0x0000
        peer.release()
        (path,) = door.kept()
    kept = pydicom.dcmread(path)
    assert kept.file_meta.TransferSyntaxUID == RLELossless
    assert kept.PixelData == compressed.PixelData


def test_titles_and_addresses_are_refused_with_their_reasons(tmp_path):
    with doorway(tmp_path / "titles", Listener(allowed_ae=("KNOWN",))) as door:
        assert rejection(call(door.port, title="UNKNOWN")) == (1, 1, 3)
        assert rejection(call(door.port, title="KNOWN", called="OTHER")) == (1, 1, 7)
        peer = call(door.port, title="KNOWN")
        assert peer.is_established
        peer.release()
    with doorway(tmp_path / "address", Listener(allowed_addresses=("10.0.0.0/8",))) as door:
        assert rejection(call(door.port)) == (1, 1, 1)


@pytest.mark.parametrize("limits", [{"max_associations": 2}, {"max_associations_per_peer": 2}])
def test_one_association_too_many_is_rejected_until_another_ends(tmp_path, limits):
    with doorway(tmp_path, Listener(**limits)) as door:
        first, second = call(door.port), call(door.port)
        assert first.is_established and second.is_established
        assert rejection(call(door.port)) == (2, 3, 2)
        first.release()

        def again() -> bool:
            peer = call(door.port)
            established = peer.is_established
            if established:
                peer.release()
            return established

        assert wait_for(again, 10)
        second.release()


def test_seats_are_shared_by_processes_and_freed_when_one_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from hscc_edge.serve.doors.seats import Seats\n"
        "seats = Seats(Path(sys.argv[1]), 3, 2)\n"
        "print(seats.take('a') is not None, seats.take('a') is not None, flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path / "seats"], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline().split() == ["True", "True"]
    seats = Seats(tmp_path / "seats", 3, 2)
    try:
        assert seats.take("a") is None
        kept = seats.take("b")
        assert kept is not None and seats.take("c") is None
        seats.give_back(kept)
        assert seats.take("c") is not None
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert seats.take("a") is not None and seats.taken() == 2
    seats.close()


def test_silent_connections_keep_nobody_out(tmp_path, files):
    with doorway(tmp_path) as door:
        silent = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(150)]
        assert storescu(door.port, files[:3]) == set(files[:3])
        for connection in silent:
            connection.close()


def raw(port: int, *pieces: bytes) -> bytes:
    """What comes back, until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        heard = b""
        with contextlib.suppress(OSError):  # it may have closed before all was sent
            for piece in pieces:
                connection.sendall(piece)
        while piece := connection.recv(4096):
            heard += piece
    return heard


def request() -> bytes:
    """An A-ASSOCIATE-RQ, as pynetdicom encodes it, for MR in Explicit VR Little Endian as context 1."""
    from pynetdicom.pdu import A_ASSOCIATE_RQ
    from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

    asked, most, implementation = A_ASSOCIATE(), MaximumLengthNotification(), ImplementationClassUIDNotification()
    context = build_context(MRImageStorage, ExplicitVRLittleEndian)
    context.context_id = 1
    most.maximum_length_received, implementation.implementation_class_uid = 16384, "1.2.3"
    asked.application_context_name, asked.calling_ae_title, asked.called_ae_title = (
        "1.2.840.10008.3.1.1.1",
        "X",
        "HSCC_EDGE",
    )
    asked.user_information = [most, implementation]
    asked.presentation_context_definition_list = [context]
    return bytes(A_ASSOCIATE_RQ(asked).encode())


def data(control: int, content: bytes) -> bytes:
    """A P-DATA-TF with one fragment."""
    return struct.pack(">BBLLBB", 4, 0, len(content) + 6, len(content) + 2, 1, control) + content


def command(field: int = 1, sop: bytes = b"1.2.3\0", kind: int = 0) -> bytes:
    elements = b"".join(
        struct.pack("<HHI", 0, element, len(value)) + value
        for element, value in (
            (0x0002, MRImageStorage.encode() + b"\0"[: len(MRImageStorage) % 2]), (0x0100, struct.pack("<H", field)),
            (0x0110, b"\1\0"), (0x0700, b"\0\0"), (0x0800, struct.pack("<H", kind)), (0x1000, sop),
        )
    )  # fmt: skip
    return struct.pack("<HHII", 0, 0, 4, len(elements)) + elements


HOSTILE = {
    "a PDU of a gigabyte": (struct.pack(">BBL", 4, 0, 1 << 30),),
    "an unknown PDU": (struct.pack(">BBL", 9, 0, 4), bytes(4)),
    "an object without end": (data(3, command()), *[data(0, bytes(100_000))] * 25),
    "a command without end": tuple([data(1, bytes(60_000))] * 3),
    "data before its command": (data(2, b"x"),),
    "a command amid an object": (data(3, command()), data(0, b"x"), data(3, command())),
    "an identifier without end": (data(3, command(field=0x20)), *[data(0, bytes(120_000))] * 40),
    "a command that is none": (data(3, b"\xff" * 40),),
}


@pytest.mark.parametrize("pieces", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_association_is_aborted_and_leaves_nothing(tmp_path, files, pieces):
    with doorway(tmp_path, Listener(max_object_mib=1)) as door:
        heard = raw(door.port, request(), *pieces)
        assert heard[:1] == b"\2" and heard[-10:-4] == b"\7\0\0\0\0\4", heard[-10:]
        assert wait_for(lambda: not door.left(), 10)
        assert door.rows() == []
        assert storescu(door.port, files[:1]) == {files[0]}


def test_a_bad_uid_in_the_command_is_refused(tmp_path):
    with doorway(tmp_path) as door, socket.create_connection(("127.0.0.1", door.port), timeout=30) as connection:
        connection.sendall(request() + data(3, command(sop=b"../../x\0")) + data(2, bytes(100)))
        heard = b""
        while struct.pack("<HHIH", 0, 0x0900, 2, 0xC000) not in heard:
            piece = connection.recv(4096)
            assert piece, heard
            heard += piece
        assert door.rows() == [] and not door.left()


def test_a_pdu_that_comes_drop_by_drop_ends_the_connection(tmp_path):
    with doorway(tmp_path, Listener(idle_s=0.5)) as door:
        connection = socket.create_connection(("127.0.0.1", door.port), timeout=30)
        with connection:
            connection.sendall(request()[:40])
            assert connection.recv(1) == b""


def test_priority_expected_number_peer_and_release_are_recorded(tmp_path, files):
    first = dataset_of(files[0], RequestedProcedurePriority="STAT", NumberOfStudyRelatedInstances=7)
    with doorway(tmp_path, study=Study(on_release=True)) as door:
        peer = call(door.port)
        assert send(peer, first) == 0x0000
        assert door.rows("SELECT priority, expected, released FROM studies") == [(2, 7, 0)]
        peer.release()
        assert wait_for(lambda: door.rows("SELECT released FROM studies") == [(1,)], 10)
        ((detail,),) = door.rows("SELECT detail FROM events WHERE kind = 'received'")
        assert '"MODALITY@127.0.0.1"' in str(detail)


def test_an_aborted_association_keeps_what_was_acknowledged_and_nothing_else(tmp_path, files):
    with doorway(tmp_path) as door:
        encoded = BytesIO()
        pydicom.dcmwrite(encoded, dataset_of(files[0]))
        peer = call(door.port)
        assert send(peer, dataset_of(files[0])) == 0x0000
        peer.abort()
        with socket.create_connection(("127.0.0.1", door.port)) as connection:
            connection.sendall(request() + data(3, command()) + data(0, encoded.getvalue()))
            assert wait_for(lambda: len(door.left()) == 1, 10)
        assert wait_for(lambda: not door.left(), 10)
        assert len(door.rows()) == len(door.kept()) == 1


def test_a_clock_set_forward_ends_no_association(tmp_path, files, monkeypatch):
    now = time.time
    with doorway(tmp_path, Listener(idle_s=20.0)) as door:
        peer = call(door.port)
        assert send(peer, dataset_of(files[0])) == 0x0000
        monkeypatch.setattr("pynetdicom.timer.time.time", lambda: now() + 3600)
        peer.network_timeout = None
        time.sleep(1.0)
        assert send(peer, dataset_of(files[1])) == 0x0000
        peer.release()
