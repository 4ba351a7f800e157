"""What modalities send: new studies, late slices, duplicates, other content under a known UID, images out of scope."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Any

import pydicom
from pydicom.uid import CTImageStorage, MRImageStorage, generate_uid
from pynetdicom import AE, evt

SENDERS = 8
ROOT = "1.2.826.0.1.3680043.8.498."
PLACES = {name: f"{ROOT}{digit}{'0' * 36}" for name, digit in (("study", 7), ("series", 8), ("sop", 9))}
LARGE = 512
PUSH_MODEL = "1.2.840.10008.1.20.1"  # Storage Commitment Push Model SOP Class
# kind -> (share, whether it is in scope and usable)
KINDS = {"slice": (0.84, True), "large": (0.06, True), "ct": (0.05, False), "broken": (0.05, False)}
MINIMUM = 2  # images that the bundle's decision needs


@dataclass(frozen=True, slots=True)
class Item:
    """One file to send; `digest` is sha256 of its data set."""

    path: str
    study: str
    sop: str
    digest: str
    kind: str
    usable: bool


class Load:
    """Makes files, sends them by dcmtk's storescu, and knows which were acknowledged, and when."""

    def __init__(self, root: Path, model: Path, seed: int) -> None:
        """`model` is any MR image; all that is sent are copies of it with UIDs of their own."""
        self.root, self.acknowledged = root, dict[str, tuple[Item, float]]()
        root.mkdir(parents=True, exist_ok=True)
        self._choice, self._seed, self._made = random.Random(seed), seed, 0
        self._templates = templates(model)
        self._open: dict[str, Item] = {}  # not acknowledged yet
        self._late: list[tuple[str, str]] = []  # (study, kind) that gets another slice later
        self._lock = threading.Lock()

    def batch(self, studies: int = 4) -> list[Item]:
        """New studies, late slices of earlier ones, duplicates, and what was never acknowledged."""
        choice, items = self._choice, [*self._open.values()]
        for _ in range(studies):
            study, (kind,) = self._uid(), choice.choices([*KINDS], [share for share, _ in KINDS.values()])
            number = 1 if choice.random() < 0.1 else choice.randint(2, 3)
            items += [self._make(study, kind) for _ in range(number)]
            if choice.random() < 0.4:
                self._late.append((study, kind))
        for study, kind in self._taken(self._late, 2):
            items.append(self._make(study, kind))
        known = [item for item, _ in self.acknowledged.values()]
        items += choice.sample(known, min(len(known), 2))
        if known and choice.random() < 0.2:
            items.append(self._other_content(choice.choice(known)))
        choice.shuffle(items)
        return items

    def small(self) -> list[Item]:
        """One new study of two images, and what was never acknowledged."""
        study, before = self._uid(), [*self._open.values()]
        return [*before, *(self._make(study, "slice") for _ in range(MINIMUM))]

    def _taken(self, items: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
        found = items[:most] if self._choice.random() < 0.7 else []
        del items[: len(found)]
        return found

    def _uid(self) -> str:
        self._made += 1
        return f"{ROOT}1{self._seed % 10**12:012d}{self._made:024d}"

    def _make(self, study: str, kind: str) -> Item:
        uids = {"study": study, "series": study.replace(f"{ROOT}1", f"{ROOT}2"), "sop": self._uid()}
        content = self._templates[kind]
        for name, place in PLACES.items():
            content = content.replace(place.encode(), uids[name].encode())
        return self._write(study, uids["sop"], content, kind)

    def _write(self, study: str, sop: str, content: bytes, kind: str) -> Item:
        digest = digest_of(content)
        path = self.root / f"{digest[:24]}.dcm"
        path.write_bytes(content)
        item = Item(str(path), study, sop, digest, kind, KINDS[kind][1])
        self._open[digest] = item
        return item

    def _other_content(self, item: Item) -> Item:
        """The same UIDs over another picture."""
        content = bytearray(Path(item.path).read_bytes())
        content[-1 - self._made % 100] ^= 0x01
        return self._write(item.study, item.sop, bytes(content), item.kind)

    def send(self, port: int, items: Sequence[Item], senders: int = SENDERS) -> list[threading.Thread]:
        """Start sending through that many storescu at once; join the threads to know that all have ended."""
        parts = [items[number::senders] for number in range(senders)]
        threads = [threading.Thread(target=self._storescu, args=(port, part)) for part in parts if part]
        for thread in threads:
            thread.start()
        return threads

    def _storescu(self, port: int, items: Sequence[Item]) -> None:
        by_path, current = {item.path: item for item in items}, None
        words = [
            dcmtk("storescu"),
            "-v",
            "-nh",
            "-to",
            "20",
            "-td",
            "20",
            "-ta",
            "20",
            "-aec",
            "HSCC_EDGE",
            "127.0.0.1",
        ]
        with subprocess.Popen(
            [*words, str(port), *by_path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout
            for line in process.stdout:
                if found := re.search(r"Sending file: (.*)$", line):
                    current = by_path[found[1].strip()]
                elif "Received Store Response (Success)" in line and current is not None:
                    self._note(current)

    def _note(self, item: Item) -> None:
        with self._lock:
            self.acknowledged.setdefault(item.digest, (item, monotonic()))
            self._open.pop(item.digest, None)

    @property
    def unacknowledged(self) -> list[Item]:
        """What is still to be sent."""
        return [*self._open.values()]

    def save(self, path: Path) -> None:
        """Write what was acknowledged, for soak_check.py."""
        path.write_text("".join(json.dumps(asdict(item)) + "\n" for item, _ in self.acknowledged.values()))


def read_items(path: Path) -> list[Item]:
    """What `Load.save` wrote."""
    return [Item(**json.loads(line)) for line in path.read_text().splitlines()]


def digest_of(content: bytes) -> str:
    """sha256 of the data set of a PS3.10 file: what follows preamble, prefix, group length and group 2."""
    start = 144 + int.from_bytes(content[140:144], "little")
    return hashlib.sha256(content[start:]).hexdigest()


def templates(model: Path) -> dict[str, bytes]:
    """kind -> a file with PLACES in place of its UIDs."""
    found = {}
    for kind in KINDS:
        dataset = pydicom.dcmread(model)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = PLACES["study"], PLACES["series"]
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = PLACES["sop"]
        if kind == "ct":
            dataset.Modality = "CT"
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
        if kind == "large":
            factor = LARGE // dataset.Rows
            dataset.PixelData = dataset.pixel_array.repeat(factor, 0).repeat(factor, 1).tobytes()
            dataset.Rows = dataset.Columns = LARGE
            dataset.PixelSpacing = [spacing / factor for spacing in dataset.PixelSpacing]
        if kind == "broken":
            dataset.PixelData = dataset.PixelData[:100]
        buffer = BytesIO()
        dataset.save_as(buffer)
        found[kind] = buffer.getvalue()
    return found


def dcmtk(name: str) -> str:
    """A program of dcmtk's: pynetdicom installs a storescu too, which comes first in an activated environment."""
    return str(Path(shutil.which("dsrdump") or "").with_name(name))


def ask_commitment(port: int, items: Sequence[Item], wait_s: float = 20.0) -> bool:
    """Ask for storage commitment (PS3.4 J.3) to all of these; whether it was given, on the same association."""
    answers: list[int] = []
    told = threading.Event()

    def on_report(event: Any) -> tuple[int, None]:
        answers.append(event.event_type)
        told.set()
        return 0x0000, None

    wanted = pydicom.Dataset()
    wanted.TransactionUID, wanted.ReferencedSOPSequence = generate_uid(), []
    for item in items:
        one = pydicom.Dataset()
        one.ReferencedSOPClassUID = CTImageStorage if item.kind == "ct" else MRImageStorage
        one.ReferencedSOPInstanceUID = item.sop
        wanted.ReferencedSOPSequence.append(one)
    entity = AE(ae_title="ASKS")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = wait_s
    entity.add_requested_context(PUSH_MODEL)
    handlers: list[Any] = [(evt.EVT_N_EVENT_REPORT, on_report), (evt.EVT_CONN_CLOSE, lambda _: told.set())]
    association = entity.associate("127.0.0.1", port, ae_title="HSCC_EDGE", evt_handlers=handlers)
    if not association.is_established:
        return False
    association.send_n_action(wanted, 1, PUSH_MODEL, "1.2.840.10008.1.20.1.1")
    told.wait(wait_s)
    if association.is_established:
        association.release()
    return answers == [1]


def join(threads: Iterable[threading.Thread]) -> None:
    """Wait for all of them."""
    for thread in threads:
        thread.join()
