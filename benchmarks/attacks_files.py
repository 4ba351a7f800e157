"""Hostile files by every door: decompression bombs, giant sizes that are not there, what a watched folder may hold."""

from __future__ import annotations

import os
import socket
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import attacks_http
import mutations
import pydicom
from attacks_dicom import Found, Ledger, Outcome
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.uid import generate_uid
from pynetdicom import AE

MIB = 1 << 20
GIANT = 65_000


@dataclass(frozen=True, slots=True)
class Target:
    """What is attacked; `folder` is watched."""

    dicom: int
    web: int
    folder: Path
    file: Path
    ledger: Ledger
    most_mib: int


def bombs(file: Path) -> Iterator[tuple[str, pydicom.Dataset]]:
    """(name, data set): small files that ask for gigabytes, each with UIDs of its own."""
    for name, (syntax, pixels) in BOMBS.items():
        found = pydicom.dcmread(file)
        found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        found.StudyInstanceUID, found.SeriesInstanceUID = generate_uid(), generate_uid()
        found.Rows = found.Columns = GIANT
        found.file_meta.TransferSyntaxUID = syntax
        content = pixels()
        found.PixelData = encapsulate([content]) if syntax.is_encapsulated else content
        found["PixelData"].is_undefined_length = syntax.is_encapsulated
        if name == "frames":
            found.Rows = found.Columns = 64
            found.NumberOfFrames = 2**31 - 1
        yield name, found


def _rle() -> bytes:
    """Two segments of runs of 128 bytes, which two bytes stand for: 4 MiB that become 256."""
    segment = b"\x81\x00" * MIB
    offsets = (2, 64, 64 + len(segment), *[0] * 13)
    return b"".join(offset.to_bytes(4, "little") for offset in offsets) + segment * 2


def _jpeg() -> bytes:
    """A real JPEG of 64 x 64 that says that it is giant."""
    buffer = BytesIO()
    Image.new("L", (64, 64), 99).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = GIANT.to_bytes(2, "big") * 2
    return bytes(content)


def _jpeg2000() -> bytes:
    """A real codestream of 64 x 64 that says that it, and its one tile, are giant."""
    buffer = BytesIO()
    Image.new("L", (64, 64), 99).save(buffer, "JPEG2000", no_jp2=True)
    content = bytearray(buffer.getvalue())
    at = content.index(b"\xff\x51") + 6
    for place in (at, at + 4, at + 16, at + 20):
        content[place : place + 4] = GIANT.to_bytes(4, "big")
    return bytes(content)


def _nothing() -> bytes:
    return bytes(64)


BOMBS: dict[str, tuple[uid.UID, Callable[[], bytes]]] = {
    "RLE": (uid.RLELossless, _rle),
    "JPEG": (uid.JPEGBaseline8Bit, _jpeg),
    "JPEG 2000": (uid.JPEG2000Lossless, _jpeg2000),
    "native": (uid.ExplicitVRLittleEndian, _nothing),
    "frames": (uid.ExplicitVRLittleEndian, lambda: bytes(64 * 64 * 2)),
}


def deflated(file: Path, size: int) -> bytes:
    """A file whose data set is deflated and becomes `size` bytes of nothing."""
    buffer = BytesIO()
    found = pydicom.dcmread(file)
    found.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    found.save_as(buffer)
    meta = 144 + int.from_bytes(buffer.getvalue()[140:144], "little")
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    element = b"\x09\x00\x10\x00OB\0\0" + size.to_bytes(4, "little")
    pieces = [press.compress(element), *(press.compress(bytes(MIB)) for _ in range(size // MIB)), press.flush()]
    return buffer.getvalue()[:meta] + b"".join(pieces)


def bombed(target: Target, count: int) -> Outcome:
    """Bombs by C-STORE and by STOW-RS: kept if they can be parsed, never decoded beyond the limits, no result."""
    endings: Counter[str] = Counter()
    wrong = 0
    for _ in range(count):
        for name, dataset in bombs(target.file):
            status = _store(target, dataset)
            endings[f"{name} by DIMSE: {status:#06x}"] += 1
            wrong += status != 0
        for name, dataset in bombs(target.file):
            buffer = BytesIO()
            dataset.save_as(buffer)
            found = _post(target, buffer.getvalue(), str(dataset.SOPInstanceUID))
            endings[f"{name} by STOW-RS: {found.ending}"] += 1
            wrong += found.ending != "200"
        found = _post(target, deflated(target.file, 1 << 28))
        endings[f"deflated by STOW-RS: {found.ending}"] += 1
        wrong += found.ending != "409"
    return Outcome(count * (2 * len(BOMBS) + 1), endings, wrong)


def _store(target: Target, dataset: pydicom.Dataset) -> int:
    entity = AE("BOMBER")
    entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", target.dicom, ae_title="HSCC_EDGE")
    if not association.is_established:
        return -1
    try:
        status = int(association.send_c_store(dataset).get("Status", -1))
    finally:
        association.release()
    target.ledger.note(Found("answered", ((str(dataset.SOPInstanceUID), status),)))
    return status


def _post(target: Target, content: bytes, sop: str | None = None) -> Found:
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {attacks_http.KIND}\r\n".encode()
    body = b"--line\r\n\r\n" + content + b"\r\n--line--\r\n"
    found = attacks_http.exchange(target.web, attacks_http.whole(head, body))
    target.ledger.note(found, sop)
    return found


def littered(target: Target, count: int) -> Outcome:
    """A watched folder full of links, pipes, odd names and spoilt files: emptied, and nothing followed."""
    corpus = [("file", target.file.read_bytes())]
    endings: Counter[str] = Counter()
    outside = target.folder.parent / "outside"
    outside.write_bytes(target.file.read_bytes())
    for number, (_, content) in enumerate(mutations.mutants(corpus, count, seed=7)):
        place = target.folder / (f"{number}\n..\\{os.fsdecode(bytes([0x80]))}" if number % 3 else f"{number:05d}.dcm")
        match number % 10:
            case 0:
                place.symlink_to(outside)
            case 1:
                os.mkfifo(place)
            case 2:
                (target.folder / f"folder {number}").symlink_to("/", target_is_directory=True)
            case 3:
                _bind(target.folder, f"socket {number}")
            case 4:
                with place.open("wb") as file:
                    file.truncate((target.most_mib + 1) * MIB)
            case _:
                place.write_bytes(content)
    deadline = time.monotonic() + 120
    while (left := _left(target.folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    aside = [path for path in (target.folder / "refused").glob("*") if not path.name.endswith(".reason")]
    endings.update({"put aside": len(aside), "taken in": count - len(aside) - left, "left": left})
    return Outcome(count, endings, left + (not outside.exists()))


def _bind(folder: Path, name: str) -> None:
    """A UNIX socket, whose address may not be as long as a path may."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"/proc/self/fd/{handle}/{name}")
    os.close(handle)


def _left(folder: Path) -> int:
    return sum(1 for entry in os.scandir(folder) if entry.name != "refused")


# The attack, and its tries where there are 10,000 mutated associations.
ATTACKS: dict[str, tuple[Callable[[Target, int], Outcome], int]] = {
    "decompression bombs": (bombed, 4),
    "a folder of hostile files": (littered, 500),
}
