"""Hostile associations, the same for the same seed: a real one of dcmtk's storescu as recorded, with one thing wrong.

PDUs: PS3.8 section 9.3. Each variant has UIDs of its own, as long as those recorded, so that what is kept of it can be
told from all others.
"""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import mutations
import pydicom

from hscc_edge.serve.doors.receiver import receive

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)
LENGTHS = (0, 1, 2, 3, 4, 5, 6, 67, 68, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF)
TRICKS = (
    b"../../../../etc/passwd", b"/etc/passwd", b"..", b".", b"\0", b"", b"1.2.3/../../x", b"1" * 64, b"1." * 32,
    b"%2e%2e%2f", b"$(touch x)", b"'; DROP TABLE instances; --", b"1.2\\1.3", b"\xff\xfe\xfd", b"-rf", b"1.2.3\n",
)  # fmt: skip
SCU = "hscc_edge-hostile"


@dataclass(frozen=True, slots=True)
class Association:
    """What a sender sends, PDU by PDU, and the UIDs that are in it."""

    pdus: tuple[bytes, ...]
    sop: str
    study: str
    file: bytes

    def variant(self, number: int) -> Association:
        """The same with other UIDs of the same length."""
        sop, study = (uid[:-8] + f"{10_000_000 + number:08d}" for uid in (self.sop, self.study))

        def other(content: bytes) -> bytes:
            return content.replace(self.sop.encode(), sop.encode()).replace(self.study.encode(), study.encode())

        return Association(tuple(other(pdu) for pdu in self.pdus), sop, study, other(self.file))


def record(file: Path, scratch: Path) -> Association:
    """What storescu sends when it stores a file."""
    heard = bytearray()
    with receive(scratch) as port, socket.create_server(("127.0.0.1", 0)) as door:
        relay = threading.Thread(target=_relay, args=(door, port, heard))
        relay.start()
        own = str(door.getsockname()[1])
        subprocess.run(["storescu", "-aet", "RECORDED", "-aec", "ARCHIVE", "127.0.0.1", own, str(file)], check=True)
        relay.join()
    dataset = pydicom.dcmread(file)
    pdus = [pdu.replace(b"ARCHIVE".ljust(16), b"HSCC_EDGE".ljust(16)) for pdu in split(bytes(heard))]
    return Association(tuple(pdus), str(dataset.SOPInstanceUID), str(dataset.StudyInstanceUID), file.read_bytes())


def _relay(door: socket.socket, port: int, heard: bytearray) -> None:
    client, _ = door.accept()
    with client, socket.create_connection(("127.0.0.1", port)) as server:

        def back() -> None:
            while piece := server.recv(65536):
                client.sendall(piece)

        answers = threading.Thread(target=back)
        answers.start()
        while piece := client.recv(65536):
            heard += piece
            server.sendall(piece)
        server.shutdown(socket.SHUT_WR)
        answers.join()


def split(stream: bytes) -> Iterator[bytes]:
    """The whole PDUs of a byte stream."""
    while len(stream) >= 6:
        size = 6 + struct.unpack_from(">I", stream, 2)[0]
        yield stream[:size]
        stream = stream[size:]


def pdu(kind: int, content: bytes, length: int | None = None) -> bytes:
    """A PDU; `length` is a lie about its content's."""
    return struct.pack(">BxI", kind, len(content) if length is None else length) + content


def fragment(context: int, control: int, content: bytes, length: int | None = None) -> bytes:
    """A presentation data value item; control: 1 for a command, 2 for the last of its kind (PS3.8 annex E)."""
    return struct.pack(">IBB", len(content) + 2 if length is None else length, context, control) + content


def mutants(recorded: Association, count: int, seed: int = 0) -> Iterator[tuple[str, Association]]:
    """`count` associations with what is wrong with them; each depends on the seed and its number alone."""
    names = list(MUTATORS)
    for number in range(count):
        chance = random.Random(f"{seed}/{number}")
        kind, own = names[number % len(names)], recorded.variant(number)
        yield kind, replace(own, pdus=tuple(MUTATORS[kind](own, chance)))


def _one(association: Association, chance: random.Random) -> tuple[list[bytes], int]:
    pdus = list(association.pdus)
    return pdus, chance.randrange(len(pdus))


def wrong_type(association: Association, chance: random.Random) -> list[bytes]:
    """A PDU of another type, known or not."""
    pdus, at = _one(association, chance)
    pdus[at] = bytes([chance.choice((*range(9), 0x7F, 0xFF))]) + pdus[at][1:]
    return pdus


def wrong_length(association: Association, chance: random.Random) -> list[bytes]:
    """A PDU that says that it has another length."""
    pdus, at = _one(association, chance)
    size = len(pdus[at]) - 6
    pdus[at] = pdu(pdus[at][0], pdus[at][6:], chance.choice((*LENGTHS, size - 1, size + 1, max(0, size // 2))))
    return pdus


def flipped(association: Association, chance: random.Random) -> list[bytes]:
    """Bits turned over anywhere in one PDU."""
    pdus, at = _one(association, chance)
    pdus[at] = _flip(pdus[at], 0, chance)
    return pdus


def flipped_request(association: Association, chance: random.Random) -> list[bytes]:
    """Bits turned over in the items of the association request."""
    return [_flip(association.pdus[0], 74, chance), *association.pdus[1:]]


def _flip(content: bytes, start: int, chance: random.Random) -> bytes:
    found = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        found[chance.randrange(min(start, len(found) - 1), len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def cut(association: Association, chance: random.Random) -> list[bytes]:
    """The stream ends in the middle of a PDU."""
    pdus, at = _one(association, chance)
    return [*pdus[:at], pdus[at][: chance.randrange(len(pdus[at]))]]


def shuffled(association: Association, chance: random.Random) -> list[bytes]:
    """A PDU left out, sent twice, or sent before its turn."""
    pdus, at = _one(association, chance)
    match chance.randrange(3):
        case 0:
            del pdus[at]
        case 1:
            pdus.insert(at, pdus[at])
        case _:
            pdus.insert(chance.randrange(len(pdus)), pdus.pop(at))
    return pdus or [b""]


def garbage(association: Association, chance: random.Random) -> list[bytes]:
    """Random bytes before, between or after."""
    pdus, at = _one(association, chance)
    return [*pdus[:at], chance.randbytes(chance.choice((1, 6, 64, 5000))), *pdus[at:]]


def wrong_item(association: Association, chance: random.Random) -> list[bytes]:
    """An item of the association request with another length or type."""
    request = bytearray(association.pdus[0])
    places = _items(bytes(request))
    at = chance.choice(places)
    if chance.random() < 0.3:
        request[at] = chance.randrange(256)
    else:
        struct.pack_into(">H", request, at + 2, chance.choice((0, 1, 3, 64, 65, 0xFFFF, chance.randrange(0x10000))))
    return [bytes(request), *association.pdus[1:]]


def _items(request: bytes) -> list[int]:
    """Where the items and sub-items of an association request begin."""
    found, at = [], 74
    while at + 4 <= len(request):
        found.append(at)
        inside = {0x20: 8, 0x50: 4}.get(request[at])
        at += inside if inside else 4 + struct.unpack_from(">H", request, at + 2)[0]
    return found


def many_contexts(association: Association, chance: random.Random) -> list[bytes]:
    """Hundreds of presentation contexts, or of transfer syntaxes in one."""
    request, item = association.pdus[0], b""
    syntax = b"\x40\0\0\x111.2.840.10008.1.2"
    count = chance.choice((128, 300, 2000))
    abstract = b"\x30\0\0\x111.2.840.10008.1.1"
    if chance.random() < 0.5:
        body = b"\1\0\0\0" + abstract + syntax * count
        item = struct.pack(">BxH", 0x20, min(len(body), 0xFFFF)) + body
    else:
        for number in range(count):
            body = bytes([number % 256]) + b"\0\0\0" + abstract + syntax
            item += struct.pack(">BxH", 0x20, len(body)) + body
    return [pdu(ASSOCIATE_RQ, request[6:74] + item + request[74:]), *association.pdus[1:]]


def wrong_fragment(association: Association, chance: random.Random) -> list[bytes]:
    """A presentation data value with another length, context or control byte."""
    pdus = list(association.pdus)
    at = chance.choice([number for number, item in enumerate(pdus) if item[0] == P_DATA])
    context, control, content = pdus[at][10], pdus[at][11], pdus[at][12:]
    match chance.randrange(4):
        case 0:
            inner = fragment(context, control, content, chance.choice((*LENGTHS, len(content) + 3)))
        case 1:
            inner = fragment(chance.randrange(256), control, content)
        case 2:
            inner = fragment(context, chance.randrange(256), content)
        case _:
            inner = b"".join(fragment(context, control & 1, content[i : i + 1]) for i in range(min(500, len(content))))
    pdus[at] = pdu(P_DATA, inner)
    return pdus


def wrong_command(association: Association, chance: random.Random) -> list[bytes]:
    """An element of the command set with another value, length or tag."""
    pdus = list(association.pdus)
    at = next(number for number, item in enumerate(pdus) if item[0] == P_DATA)
    command, places, place = bytearray(pdus[at][12:]), [], 0
    while place + 8 <= len(command):
        places.append(place)
        place += 8 + struct.unpack_from("<I", command, place + 4)[0]
    place = chance.choice(places)
    match chance.randrange(3):
        case 0:
            struct.pack_into("<I", command, place + 4, chance.choice(LENGTHS))
        case 1:
            struct.pack_into("<H", command, place + 2, chance.randrange(0x10000))
        case _:
            command[place + 8 : place + 10] = chance.randbytes(2)
    pdus[at] = pdu(P_DATA, fragment(pdus[at][10], pdus[at][11], bytes(command)))
    return pdus


def tricky_uid(association: Association, chance: random.Random) -> list[bytes]:
    """Path tricks and the like in place of UIDs, in command and data set alike."""
    trick = chance.choice(TRICKS)
    old = chance.choice((association.sop, association.study)).encode()
    width = len(old) + len(old) % 2
    filler = trick[:width].ljust(width, b"\0")
    return [item.replace(old.ljust(width, b"\0"), filler) for item in association.pdus]


def wrong_titles(association: Association, chance: random.Random) -> list[bytes]:
    """AE titles with control characters, path tricks or nothing in them."""
    request = bytearray(association.pdus[0])
    at = chance.choice((10, 26))
    request[at : at + 16] = chance.choice((*TRICKS, chance.randbytes(16), b" " * 16))[:16].ljust(16)
    return [bytes(request), *association.pdus[1:]]


def wrong_data(association: Association, chance: random.Random) -> list[bytes]:
    """A data set that benchmarks/mutations.py has spoilt, in PDUs without fault."""
    kind = chance.choice(list(mutations.MUTATORS))
    content = mutations.MUTATORS[kind](association.file, chance)
    spoilt = content[_data_start(content) :] or b"\0"
    at = next(number for number, item in enumerate(association.pdus) if item[0] == P_DATA)
    context = association.pdus[at][10]
    pieces = [spoilt[i : i + 16_000] for i in range(0, len(spoilt), 16_000)]
    data = [pdu(P_DATA, fragment(context, 2 * (n == len(pieces) - 1), piece)) for n, piece in enumerate(pieces)]
    return [*association.pdus[: at + 1], *data, association.pdus[-1]]


def _data_start(content: bytes) -> int:
    """Where a PS3.10 file's data set begins, by its group length; the whole file if that is spoilt."""
    with closing(BytesIO(content)) as file:
        file.seek(140)
        found = 144 + int.from_bytes(file.read(4), "little")
    return found if found < len(content) else 0


MUTATORS: dict[str, Callable[[Association, random.Random], Sequence[bytes]]] = {
    "type": wrong_type,
    "length": wrong_length,
    "bits": flipped,
    "request bits": flipped_request,
    "cut": cut,
    "order": shuffled,
    "garbage": garbage,
    "item": wrong_item,
    "contexts": many_contexts,
    "fragment": wrong_fragment,
    "command": wrong_command,
    "UID": tricky_uid,
    "AE title": wrong_titles,
    "data set": wrong_data,
}
