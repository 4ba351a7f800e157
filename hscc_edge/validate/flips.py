"""Each case on which original and compressed classifier disagree: picture, probabilities, and where each looked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data import page
from hscc_edge.data.case import inputs_of, load
from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import extra
from hscc_edge.model.decision import Decision
from hscc_edge.model.head import kl
from hscc_edge.model.load import load_network
from hscc_edge.validate.collect import Collection
from hscc_edge.validate.predict import Case
from hscc_edge.validate.saliency import occlusion

with extra("workstation"):
    import matplotlib
    from markupsafe import Markup
    from matplotlib.figure import Figure
    from torch import nn

KIND, SCHEMA = "flips", 1
Progress = Callable[[int, str], None]
Map = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Flip:
    """A case that the two decide differently.

    Attributes:
        case, patient: pseudonyms.
        right: which of the two decided as labelled: "original", "compressed", "neither".
        confidence: the larger of both decided labels' probabilities, by which flips are sorted, largest first.
        image: number of the case's picture on which the two differ most, which is shown.
    """

    case: str
    patient: str
    label: str
    reference: str | None
    candidate: str | None
    reference_probabilities: tuple[float, ...]
    candidate_probabilities: tuple[float, ...]
    right: str
    confidence: float
    image: int


def flips(found: Collection) -> tuple[Flip, ...]:
    """The cases with unlike decisions, the most confident first."""
    pairs = zip(found.reference.cases, found.candidate.cases, strict=True)
    unlike = [_flip(a, b, found) for a, b in pairs if a.decision.label != b.decision.label]
    return tuple(sorted(unlike, key=lambda flip: (-flip.confidence, flip.case)))


def _flip(first: Case, second: Case, found: Collection) -> Flip:
    old, new = first.decision, second.decision
    right = {old.label: "original", new.label: "compressed"}.get(first.label, "neither")
    divergence = kl(found.reference.head, first.logits, second.logits)
    return Flip(
        first.key, first.patient, first.label, old.label, new.label, _rounded(old), _rounded(new), right,
        max(_sure(old), _sure(new)), int(np.argmax(np.nan_to_num(divergence, nan=np.inf))),
    )  # fmt: skip


def _sure(decision: Decision) -> float:
    return max(decision.probabilities, default=0.0) if decision.label is not None else 0.0


def _rounded(decision: Decision) -> tuple[float, ...]:
    return tuple(round(value, 6) for value in decision.probabilities)


def record(found: Collection, chosen: Sequence[Flip], shown: int) -> dict[str, Any]:
    """Plain JSON of the flips, without pictures."""
    return {
        "kind": KIND, "schema": SCHEMA, "cohort": dict(found.cohort), "conditions": dict(found.conditions),
        "reference": {"digest": found.reference.bundle["digest"], "name": found.reference.bundle["name"]},
        "candidate": {"digest": found.candidate.bundle["digest"], "name": found.candidate.bundle["name"]},
        "labels": list(found.reference.head.labels), "shown": shown, "flips": [asdict(flip) for flip in chosen],
    }  # fmt: skip


def sheet(
    found: Collection,
    chosen: Sequence[Flip],
    most: int,
    candidate: Bundle,
    reference: Bundle,
    cohort: Cohort,
    progress: Progress | None = None,
) -> str:
    """A self-contained page of the first `most` of the flips; seconds a flip, one picture in memory at a time."""
    networks = load_network(reference), load_network(candidate)
    preprocess = parse_preprocess(reference.spec.preprocess)
    cases = {cohort.pseudonym(uid): items for uid, items in cohort.cases(found.reference.rule.unit).items()}
    entries = []
    for flip in chosen[:most]:
        pixels = load(cohort, _input(cohort, cases[flip.case], preprocess, flip.image), preprocess)
        maps = list(_maps(networks, pixels, flip, found))
        entries.append({"flip": flip, "figure": Markup(_figure(pixels, maps, flip))})
        if progress is not None:
            progress(1, "")
    return page.render(
        "hscc_edge.validate", "flips.html.j2", {"percent": lambda value: f"{100 * value:.1f} %"}, entries=entries,
        labels=found.reference.head.labels, total=len(chosen), cases=found.cohort["cases"],
        unit=found.cohort["unit"], candidate=found.candidate.bundle["name"], reference=found.reference.bundle["name"],
        digest=found.cohort["digest"],
    )  # fmt: skip


def _input(cohort: Cohort, items: Sequence[Instance], preprocess: Any, number: int) -> tuple[Instance, ...]:
    return inputs_of(dataclasses.replace(cohort, instances=tuple(items)), preprocess)[number]


def _maps(
    networks: Sequence[nn.Module], pixels: NDArray[np.float32], flip: Flip, found: Collection
) -> Iterator[Map | None]:
    """Of each network for the label that it decided itself; None where it decided none."""
    head = found.reference.head
    for network, label in zip(networks, (flip.reference, flip.candidate), strict=True):
        yield None if label is None else occlusion(network, pixels, head, head.labels.index(label))


def _figure(pixels: NDArray[np.float32], maps: Sequence[Map | None], flip: Flip) -> str:
    picture = _slice(pixels.mean(axis=0))
    with matplotlib.rc_context(page.STYLE):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        titles = ("picture", f"original: {flip.reference or 'none'}", f"compressed: {flip.candidate or 'none'}")
        for axes, found, title in zip(figure.subplots(1, 3), (None, *maps), titles, strict=True):
            axes.imshow(picture, cmap="gray")
            if found is not None:
                reach = max(float(np.abs(found).max()), 1e-6)
                axes.imshow(_slice(found), cmap="PuOr_r", vmin=-reach, vmax=reach, alpha=0.5)
            axes.set_title(title, fontsize="medium")
            axes.set_axis_off()
        described = f"Case {flip.case}: the picture, and where the original and the compressed classifier looked"
        return page.svg(figure, described)


def _slice(volume: NDArray[Any]) -> NDArray[Any]:
    return volume[len(volume) // 2] if volume.ndim == 3 else volume
