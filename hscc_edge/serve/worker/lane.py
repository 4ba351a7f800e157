"""One served model: its bundle, its network, and the inputs of several studies that share its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.steps import Pixels
from hscc_edge.model.decision import Decision, decide, parse_rule
from hscc_edge.model.head import energy, parse_head
from hscc_edge.serve.instances import Instance
from hscc_edge.serve.worker.inference import Inference, InferenceFailed


@dataclass(frozen=True, slots=True)
class Input:
    """What the network takes at once: an image, or the instances of a volume.

    Attributes:
        looks: its `appearance`.
        scanner: keyed hash of what made it; "" where the headers do not say.
    """

    rows: tuple[Instance, ...]
    looks: dict[str, float]
    scanner: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """The logits (1, n) of an input, and its share of the time that its batch took."""

    given: Input
    logits: NDArray[np.float32] = field(repr=False)
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Case:
    """A decision and what it rests on; `uid` is of the image, series or study that it is about."""

    uid: str = field(repr=False)
    decision: Decision
    outputs: tuple[Output, ...]
    energy: float

    @property
    def rows(self) -> tuple[Instance, ...]:
        """The instances, each once, ordered by SOP Instance UID."""
        found = {row.id: row for output in self.outputs for row in output.given.rows}
        return tuple(sorted(found.values(), key=lambda row: row.sop))


class Lane:
    """A model's inputs on their way: at most one batch is with the network while the next one is filled."""

    def __init__(self, name: str, bundle: Bundle, inference: Inference, batch: int) -> None:
        self.name, self.bundle, self.inference, self._batch = name, bundle, inference, batch
        self._shape = bundle.spec.input_shape
        self.preprocess = parse_preprocess(bundle.spec.preprocess)
        self._rule, self._head = parse_rule(bundle.spec.decision), parse_head(bundle.spec.head)
        self.begin()

    def begin(self) -> None:
        """Forget what went before."""
        self._waiting: list[tuple[str, Input, Pixels]] = []
        self._away: list[tuple[str, Input]] = []
        self._outputs: dict[str, list[Output]] = {}
        self.failed: dict[str, str] = {}

    def add(self, study: str, given: Input, pixels: Pixels) -> bool:
        """Take an input of a study; its output comes with `flush` at the latest. False if it has not the model's shape.

        Raises:
            InferenceUnavailable: if the network does not start.
        """
        if pixels.shape != self._shape:
            return False
        if study not in self.failed:
            self._waiting.append((study, given, pixels))
        if len(self._waiting) == self._batch:
            self._turn()
        return True

    def flush(self) -> None:
        """Wait for all that was added; raises as `add` does."""
        while self._waiting or self._away:
            self._turn()

    def decided(self, study: str, dropped: set[int]) -> list[Case]:
        """A study's cases by the bundle's rule.

        Args:
            dropped: ids of instances that are not to count.
        """
        groups: dict[str, list[Output]] = {}
        for output in self._outputs.get(study, ()):
            if not dropped & {row.id for row in output.given.rows}:
                groups.setdefault(self._unit(output.given.rows[0]), []).append(output)
        return [self._case(uid, members) for uid, members in groups.items()]

    def close(self) -> None:
        """End the network's process."""
        self.inference.close()

    def _unit(self, row: Instance) -> str:
        unit = "series" if self.preprocess.volume and self._rule.unit == "image" else self._rule.unit
        return {"image": row.sop, "series": row.series, "study": row.study}[unit]

    def _case(self, uid: str, members: Sequence[Output]) -> Case:
        logits = np.concatenate([member.logits for member in members])
        return Case(
            uid, decide(self._rule, self._head, logits), tuple(members), float(energy(self._head, logits).mean())
        )

    def _turn(self) -> None:
        """Take what the network has done, and give it what waits."""
        self._collect()
        going = [item for item in self._waiting if item[0] not in self.failed]
        self._waiting = []
        if not going:
            return
        asked = [(study, given) for study, given, _ in going]
        try:
            self.inference.submit([pixels for *_, pixels in going])
        except InferenceFailed as error:
            self._fail(asked, str(error))
            return
        self._away = asked

    def _collect(self) -> None:
        if not self._away:
            return
        try:
            logits, milliseconds = self.inference.collect()
        except InferenceFailed as error:
            self._fail(self._away, str(error))
            return
        for number, (study, given) in enumerate(self._away):
            output = Output(given, logits[number : number + 1], milliseconds / len(self._away))
            self._outputs.setdefault(study, []).append(output)
        self._away = []

    def _fail(self, asked: Sequence[tuple[str, Input]], reason: str) -> None:
        self.failed |= dict.fromkeys((study for study, _ in asked), reason)
        self._away = []
