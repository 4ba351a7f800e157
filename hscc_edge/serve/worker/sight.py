"""What a reading process does: one kept file, or the files of a volume, to what models are given of it.

It answers in messages: a JSON object, and after it the pixels that it tells of. An `input` for every image that can be
taken, and last an `end`; or instead of what is left, a `fault`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import UID

from hscc_edge.data.appearance import appearance, row_spacing_mm
from hscc_edge.data.case import read_input
from hscc_edge.data.contained import ContainedReader
from hscc_edge.data.dicom import FAULTS, Headers, Image, headers_of, image_of, read_dataset, read_frames, read_image
from hscc_edge.data.preprocess import Preprocess, parse_preprocess
from hscc_edge.data.steps import Pixels
from hscc_edge.errors import DicomError
from hscc_edge.serve.instances import DAMAGED
from hscc_edge.serve.route import scope, values
from hscc_edge.serve.station import Station
from hscc_edge.serve.worker.child import Child
from hscc_edge.serve.worker.messages import read, receive, write

WHOLE_BYTES = 16 << 20  # up to it a file is parsed once, its pixels with its headers
NO_IMAGE = "out of scope: no image"
UNDECODABLE = "cannot be decoded"
NO_VOLUME = "no volume by the model's rules"
KINDS = ("input", "end", "fault")

Message = tuple[dict[str, Any], list[Pixels]]


def seen(child: Child, patience_s: float) -> Message:
    """The next message of a reading process; raises what the child raises."""
    message, content = receive(child, patience_s)
    try:
        kind, shapes = message["kind"], [tuple(map(int, shape)) for shape in message.get("shapes", ())]
    except (ValueError, TypeError, LookupError):
        child.malformed()
    ends = list(accumulate((math.prod(shape) for shape in shapes), initial=0))
    if kind not in KINDS or 4 * ends[-1] != len(content):
        child.malformed()
    values = np.frombuffer(content, np.float32)
    return message, [
        values[start:end].reshape(shape) for (start, end), shape in zip(pairwise(ends), shapes, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Headed:
    headers: Headers
    reason: str
    models: frozenset[str] | None
    spacing_mm: float | None
    scanner: str

    def wanted_by(self, name: str) -> bool:
        return self.models is None or name in self.models

    @property
    def end(self) -> Message:
        models = None if self.models is None else sorted(self.models)
        told = {"reason": self.reason, "models": models, "spacing_mm": self.spacing_mm, "scanner": self.scanner}
        return {"kind": "end", **told}, []


class Sight:
    """Lives in the reading process; one image, or one volume, in memory at a time."""

    def __init__(self, station: Station) -> None:
        self._station, self._spool, self._contained = station, station.spool(), ContainedReader()

    def live(self, asks: int, answers: int) -> None:
        """Answer until the parent closes its end."""
        while asked := read(asks):
            for message, pixels in self.answer(asked[0]):
                held = [np.ascontiguousarray(array, np.float32).data for array in pixels]
                write(answers, message | {"shapes": [array.shape for array in pixels]}, *held)

    def answer(self, ask: Mapping[str, Any]) -> Iterator[Message]:
        """The messages on one ask; whatever goes wrong is told by its kind, and nothing else of it."""
        try:
            yield from self._volume(ask) if "files" in ask else self._file(ask)
        except OSError as error:
            yield {"kind": "fault", "errno": error.errno or 0}, []
        except Exception as error:  # whatever a codec or a step throws at hostile input
            yield {"kind": "fault", "name": type(error).__name__}, []

    def _file(self, ask: Mapping[str, Any]) -> Iterator[Message]:
        path = self._spool.path(ask["file"])
        if not self._spool.holds(ask["file"], ask["digest"]):
            yield _end(DAMAGED)
            return
        try:
            dataset = read_dataset(path, pixels=path.stat().st_size <= WHOLE_BYTES)
            headed = self._headed(dataset)
            wanting = [steps for name, steps in ask["steps"].items() if headed.wanted_by(name)]
            if wanting and not headed.reason:
                for image in self._frames(path, dataset, headed.headers):
                    each = {steps: parsed(steps)(image) for steps in dict.fromkeys(wanting)}
                    looks = appearance(image, headed.spacing_mm)
                    told = {"kind": "input", "looks": looks, "scanner": headed.scanner, "steps": list(each)}
                    yield told, list(each.values())
        except DicomError:
            yield _end(UNDECODABLE)
            return
        yield headed.end

    def _headed(self, dataset: pydicom.Dataset) -> _Headed:
        """What the headers say; whatever pydicom raises at hostile ones is the file's fault."""
        try:
            found, headers = scope(self._station.config.route, dataset), headers_of(dataset, "the object received")
            reason = found.aside or ("" if headers.rows else NO_IMAGE)
            return _Headed(headers, reason, found.models, row_spacing_mm(dataset), self._scanner(dataset))
        except OSError:
            raise
        except FAULTS as error:
            raise DicomError("the headers are malformed: leave the file out") from error

    def _frames(self, path: Path, dataset: pydicom.Dataset, headers: Headers) -> Iterator[Image]:
        if UID(headers.transfer_syntax_uid).is_encapsulated:
            for frame in range(headers.frames) if headers.frames > 1 else [None]:
                yield self._contained.image(path, frame)
        elif headers.frames > 1:
            yield from read_frames(path)
        elif "PixelData" in dataset:
            yield image_of(dataset, headers, path.name)
        else:
            yield read_image(path)

    def _volume(self, ask: Mapping[str, Any]) -> Iterator[Message]:
        preprocess = parsed(ask["steps"])
        try:
            volume = read_input([self._spool.path(file) for file in ask["files"]], preprocess)
            given = {"kind": "input", "looks": appearance(volume, ask["spacing_mm"]), "steps": [ask["steps"]]}
            yield given, [preprocess(volume)]
        except DicomError:
            yield _end(NO_VOLUME)
            return
        yield _end()

    def _scanner(self, dataset: pydicom.Dataset) -> str:
        """A keyed hash of maker and model: the same device has the same, and nothing else is told."""
        names = [values(dataset, keyword)[0] for keyword in ("Manufacturer", "ManufacturerModelName")]
        return self._station.who("scanner\n" + "\n".join(names)) if any(names) else ""


@lru_cache(maxsize=64)
def parsed(steps: str) -> Preprocess:
    """A preprocessing from its JSON."""
    return parse_preprocess(json.loads(steps))


def _end(reason: str = "") -> Message:
    return {"kind": "end", "reason": reason}, []
