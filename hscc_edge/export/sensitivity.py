"""INT8 as far as an accuracy contract allows: the nodes that hurt most are left in FP16."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ExportError, GateError
from hscc_edge.export.calibrate import Images, Span, spans, thresholds, watched
from hscc_edge.export.precision import emulated_fp16, full_nodes, to_fp16
from hscc_edge.export.quantise import corrected, pair_nodes, quantisable, quantised
from hscc_edge.model.head import Head, kl

SHARE = 0.5  # of the nodes that multiply by constants must be INT8, as the engine's precision check asks
PROBED = 32


@dataclass(frozen=True, slots=True)
class Verdict:
    """A graph against the FP32 graph on labelled images: `drop` in points of accuracy, `kl` in nats an image."""

    drop: float
    kl: float


Judge = Callable[[bytes], Verdict]


@dataclass(frozen=True, slots=True)
class Quantisation:
    """An INT8 graph.

    Attributes:
        content: the graph: INT8 in front of what multiplies, FP16 elsewhere, FP32 where FP16's range does not do.
        quantised: how many nodes are INT8, of `nodes` that could be.
        left: nodes in FP16 for the contract's sake -> why.
        full: nodes in FP32 -> why.
        drop, kl: of this graph; `trials` has number of nodes left out, drop and KL of each that was judged.
    """

    content: bytes = field(repr=False)
    method: str
    quantised: int
    nodes: int
    left: dict[str, str]
    full: dict[str, str]
    drop: float
    kl: float
    trials: tuple[dict[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object, without the graph."""
        return {key: value for key, value in asdict(self).items() if key != "content"}


def to_int8(
    content: bytes, images: Images, head: Head, judge: Judge, *, method: str = "percentile", max_drop: float = 0.5
) -> Quantisation:
    """Quantise an FP32 graph; if it breaks the contract, leave out as few of the most sensitive nodes as hold it.

    The nodes are sorted by the KL that each causes alone; how many must go is bisected, so that a graph of n nodes is
    judged about log2 n times.

    Args:
        images: gives a fresh pass over the calibration images (C, H, W) at each call.
        judge: of a graph that runs on ONNX Runtime's CPU, FP16 emulated.
        max_drop: points of accuracy.

    Raises:
        ExportError: if the graph multiplies by no constant, or a range or a result is not finite.
        GateError: if less than half of the nodes could stay in INT8.
    """
    origins, found = quantisable(content), spans(content, images)
    if not origins:
        raise ExportError("the graph has no node that multiplies by a constant: export it with --precision fp16")
    limits = thresholds(content, images, found, method, set(origins.values()))
    trials: list[dict[str, float]] = []

    def attempt(left: Collection[str]) -> Quantisation:
        kept = [name for name in origins if name not in left]
        graph, full = mixed(content, images, found, limits, kept)
        verdict = judge(emulated_fp16(graph))
        if not np.isfinite([verdict.drop, verdict.kl]).all():
            raise ExportError("the INT8 graph gives a logit that is not finite: export with --precision fp16")
        trials.append({"left": len(left), **asdict(verdict)})
        words = {name: f"alone in INT8 it causes a KL of {order[name]:.3g}" for name in left}
        return Quantisation(graph, method, len(kept), len(origins), words, full, verdict.drop, verdict.kl, ())

    order: dict[str, float] = {}
    tried = best = attempt(())
    if tried.drop > max_drop:
        order = alone(content, images, head, limits)
        low, high = 0, int(len(origins) * (1 - SHARE)) + 1
        while high - low > 1:
            middle = (low + high) // 2
            tried = attempt(list(order)[:middle])
            if tried.drop <= max_drop:
                high, best = middle, tried
            else:
                low = middle
    if best.drop > max_drop:
        raise GateError(
            f"INT8 loses {tried.drop:.2f} points with {tried.quantised} of {tried.nodes} nodes in INT8, and at most "
            f"{max_drop:g} were allowed: export with --precision fp16, or allow a larger --max-drop"
        )
    return replace(best, trials=tuple(trials))


def mixed(
    content: bytes, images: Images, found: dict[str, Span], limits: dict[str, float], names: Collection[str]
) -> tuple[bytes, dict[str, str]]:
    """A graph with the named nodes in INT8 and the others in FP16, and which had to stay in FP32, and why.

    A quantised node and its pairs keep one type, for TensorRT fuses them only so.
    """
    pairs = corrected(content, quantised(content, limits, names), images)
    full = full_nodes(pairs, found)
    for node, around in pair_nodes(pairs).items():
        reasons = [full[name] for name in (node, *sorted(around)) if name in full]
        if reasons:
            full |= dict.fromkeys({node, *around}, reasons[0])
    return to_fp16(pairs, full), full


def alone(content: bytes, images: Images, head: Head, limits: dict[str, float]) -> dict[str, float]:
    """Nodes -> the mean KL, on the first images, of quantising that node only; the largest first."""
    kept = list(islice(images(), PROBED))
    reference = logits(content, kept)
    found = {
        name: float(kl(head, reference, logits(quantised(content, limits, [name]), kept)).mean())
        for name in quantisable(content)
    }
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def logits(content: bytes, images: Collection[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Logits (N, n) of images (C, H, W)."""
    return np.concatenate([tensors["logits"] for tensors in watched(content, ["logits"], lambda: images)])
