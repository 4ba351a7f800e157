"""One served model: its bundle, its network, and the inputs of several studies that share its batches."""

from __future__ import annotations

import json
from collections import deque
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
    """A model's inputs on their way: several batches may be with the network while the next one is filled.

    Studies share batches. Memory grows with the inputs on their way, whose number `Inference.ahead` bounds.
    """

    def __init__(self, name: str, bundle: Bundle, inference: Inference, batch: int) -> None:
        self.name, self.bundle, self.inference, self._batch = name, bundle, inference, batch
        self._shape = bundle.spec.input_shape
        self.preprocess = parse_preprocess(bundle.spec.preprocess)
        self.steps = json.dumps(self.preprocess.to_json())
        self._rule, self._head = parse_rule(bundle.spec.decision), parse_head(bundle.spec.head)
        self._waiting: list[tuple[str, Input, Pixels]] = []
        self._away: deque[list[tuple[str, Input]]] = deque()
        self._outputs: dict[str, list[Output]] = {}
        self.failed: dict[str, str] = {}

    def clear(self) -> None:
        """Forget every study; what the network is still at is waited for."""
        while self._away:
            self._collect()
        self._waiting, self._outputs, self.failed = [], {}, {}

    def add(self, study: str, given: Input, pixels: Pixels) -> bool:
        """Take an input of a study; its output comes with `push` at the latest. False if it has not the model's shape.

        Raises:
            InferenceUnavailable: if the network does not start.
        """
        if pixels.shape != self._shape:
            return False
        if study not in self.failed:
            self._waiting.append((study, given, pixels))
        if len(self._waiting) == self._batch:
            self.push()
        return True

    def push(self) -> None:
        """Give the network what waits for a batch to be filled; raises as `add` does."""
        going = [item for item in self._waiting if item[0] not in self.failed]
        self._waiting = []
        if not going:
            return
        while self._away and self.inference.full:
            self._collect()
        asked = [(study, given) for study, given, _ in going]
        try:
            self.inference.submit([pixels for *_, pixels in going])
        except InferenceFailed as error:
            self._away.append(asked)
            self._fail(str(error))
        else:
            self._away.append(asked)

    def gather(self) -> None:
        """Take the outputs that are there, without waiting."""
        while self._away and self._answered():
            self._collect()

    def wait(self, study: str) -> None:
        """Wait for all outputs of a study; raises as `add` does."""
        if any(item[0] == study for item in self._waiting):
            self.push()
        while self._is_away(study):
            self._collect()

    def busy(self, study: str) -> bool:
        """Whether outputs of a study are still to come."""
        return any(item[0] == study for item in self._waiting) or self._is_away(study)

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

    def forget(self, study: str) -> None:
        """A study that is not `busy` has been decided."""
        self._outputs.pop(study, None)
        self.failed.pop(study, None)

    def close(self) -> None:
        """End the network's process."""
        self.inference.close()

    def _is_away(self, study: str) -> bool:
        return any(item[0] == study for batch in self._away for item in batch)

    def _answered(self) -> bool:
        try:
            return self.inference.answered
        except InferenceFailed:
            return True  # there is nothing to wait for

    def _unit(self, row: Instance) -> str:
        unit = "series" if self.preprocess.volume and self._rule.unit == "image" else self._rule.unit
        return {"image": row.sop, "series": row.series, "study": row.study}[unit]

    def _case(self, uid: str, members: Sequence[Output]) -> Case:
        logits = np.concatenate([member.logits for member in members])
        return Case(
            uid, decide(self._rule, self._head, logits), tuple(members), float(energy(self._head, logits).mean())
        )

    def _collect(self) -> None:
        """Wait for the oldest batch."""
        try:
            logits, milliseconds = self.inference.collect()
        except InferenceFailed as error:
            self._fail(str(error))
            return
        asked = self._away.popleft()
        for number, (study, given) in enumerate(asked):
            output = Output(given, logits[number : number + 1], milliseconds / len(asked))
            self._outputs.setdefault(study, []).append(output)

    def _fail(self, reason: str) -> None:
        """The oldest batch failed; where the process is gone, those behind it are lost with it."""
        while self._away:
            asked = self._away.popleft()
            self.failed |= dict.fromkeys((study for study, _ in asked), reason)
            if self.inference.pid is not None:
                break
