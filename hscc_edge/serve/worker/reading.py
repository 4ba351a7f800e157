"""From a study's kept files to the inputs of the models that are to look at them, by the readers of `validate`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom
from pydicom.uid import UID

from hscc_edge.data.appearance import appearance, row_spacing_mm
from hscc_edge.data.case import read_input
from hscc_edge.data.contained import ContainedReader
from hscc_edge.data.dicom import Headers, Image, headers_of, read_dataset, read_frames, read_image
from hscc_edge.errors import DicomError
from hscc_edge.serve.instances import DAMAGED, Instance
from hscc_edge.serve.route import scope, values
from hscc_edge.serve.spool import Spool
from hscc_edge.serve.station import Station
from hscc_edge.serve.worker.lane import Input, Lane

LOG = logging.getLogger(__name__)
NO_IMAGE = "out of scope: no image"
OTHER_MODELS = "out of scope: no route to this model"
UNDECODABLE = "cannot be decoded"
OTHER_SHAPE = "out of scope: colour or size is not the model's"
NO_VOLUME = "no volume by the model's rules"


@dataclass(frozen=True, slots=True)
class Headed:
    """An instance in scope with what was read of its headers."""

    row: Instance
    headers: Headers
    models: frozenset[str] | None
    spacing_mm: float | None
    scanner: str


@dataclass(slots=True)
class Reading:
    """One study as it was read.

    Attributes:
        reasons: (instance id, model's name) -> why that model cannot look at it; "" as name for every model.
    """

    study: str = field(repr=False)
    rows: Sequence[Instance]
    reasons: dict[tuple[int, str], str] = field(default_factory=dict)

    def reason(self, row: Instance, model: str) -> str | None:
        """Why a model has not looked at an instance."""
        return self.reasons.get((row.id, "")) or self.reasons.get((row.id, model))

    def dropped(self, model: str) -> set[int]:
        """Ids of the instances that a model cannot look at."""
        return {row.id for row in self.rows if self.reason(row, model) is not None}


class Reader:
    """Reads studies from the spool; compressed pixels are decoded in a process of their own."""

    def __init__(self, station: Station, spool: Spool) -> None:
        self._station, self._spool, self._contained = station, spool, ContainedReader()

    def close(self) -> None:
        """End the process that decodes, if there is one."""
        self._contained.close()

    def read(self, study: str, rows: Sequence[Instance], lanes: Sequence[Lane]) -> Reading:
        """Hand every input of a study to the lanes that it is for; one image, or one volume, in memory at a time.

        Raises:
            InferenceUnavailable: as `Lane.add` does.
        """
        reading, images = Reading(study, rows), [lane for lane in lanes if not lane.preprocess.volume]
        headed = []
        for row in rows:
            self._station.beat()
            if (item := self._headed(row, reading)) is None:
                continue
            headed.append(item)
            wanting = self._wanting(item, images, reading)
            if wanting:
                self._images(item, wanting, reading)
        for lane in lanes:
            if lane.preprocess.volume:
                self._volumes([item for item in headed if self._wanting(item, [lane], reading)], lane, reading)
        return reading

    def _headed(self, row: Instance, reading: Reading) -> Headed | None:
        path = self._spool.path(row.file)
        try:
            if not self._spool.holds(row.file, row.digest):
                LOG.error("event=spool_damaged instance=%s", self._station.who(row.sop))
                reading.reasons[row.id, ""] = DAMAGED
                return None
            dataset = read_dataset(path, pixels=False)
            found, headers = scope(self._station.config.route, dataset), headers_of(dataset, "the object received")
            if found.aside or not headers.rows:
                reading.reasons[row.id, ""] = found.aside or NO_IMAGE
                return None
            return Headed(row, headers, found.models, row_spacing_mm(dataset), self._scanner(dataset))
        except DicomError:
            reading.reasons[row.id, ""] = UNDECODABLE
            return None

    def _scanner(self, dataset: pydicom.Dataset) -> str:
        """A keyed hash of maker and model: the same device has the same, and nothing else is told."""
        names = [values(dataset, keyword)[0] for keyword in ("Manufacturer", "ManufacturerModelName")]
        return self._station.who("scanner\n" + "\n".join(names)) if any(names) else ""

    def _wanting(self, item: Headed, lanes: Sequence[Lane], reading: Reading) -> list[Lane]:
        found = [lane for lane in lanes if item.models is None or lane.name in item.models]
        for lane in lanes:
            if lane not in found:
                reading.reasons[item.row.id, lane.name] = OTHER_MODELS
        return found

    def _images(self, item: Headed, lanes: Sequence[Lane], reading: Reading) -> None:
        try:
            for image in self._frames(item):
                given = Input((item.row,), appearance(image, item.spacing_mm), item.scanner)
                for lane in lanes:
                    if not lane.add(reading.study, given, lane.preprocess(image)):
                        reading.reasons[item.row.id, lane.name] = OTHER_SHAPE
                self._station.beat()
        except DicomError:
            reading.reasons[item.row.id, ""] = UNDECODABLE

    def _frames(self, item: Headed) -> Iterator[Image]:
        path = self._spool.path(item.row.file)
        compressed = UID(item.headers.transfer_syntax_uid).is_encapsulated
        if item.headers.frames > 1 and not compressed:
            yield from read_frames(path)
            return
        for frame in range(item.headers.frames) if item.headers.frames > 1 else [None]:
            yield self._contained.image(path, frame) if compressed else read_image(path)

    def _volumes(self, items: Sequence[Headed], lane: Lane, reading: Reading) -> None:
        groups: dict[str, list[Headed]] = {}
        for item in items:
            groups.setdefault("" if lane.preprocess.series else item.row.series, []).append(item)
        for members in groups.values():
            self._station.beat()
            rows = tuple(item.row for item in members)
            try:
                volume = read_input(self._paths(rows), lane.preprocess)
                given = Input(rows, appearance(volume, members[0].spacing_mm), members[0].scanner)
                fits = lane.add(reading.study, given, lane.preprocess(volume))
            except DicomError:
                fits = False
            if not fits:
                reading.reasons.update({(row.id, lane.name): NO_VOLUME for row in rows})

    def _paths(self, rows: Sequence[Instance]) -> list[Path]:
        return [self._spool.path(row.file) for row in rows]
