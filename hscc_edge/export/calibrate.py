"""Ranges of a graph's tensors on calibration images, by ONNX Runtime; one image's tensors in memory at a time.

A first pass finds the least and the greatest value of each tensor, a second one counts values in a histogram of fixed
width, so that memory does not grow with the images, nor with how unlike they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ExportError, InputError, extra
from hscc_edge.export.onnx import parse_onnx
from hscc_edge.runtime.ort import session_options

with extra("workstation"):
    import onnx
    import onnxruntime
    from onnxruntime.quantization.calibrate import HistogramCollector

Images = Callable[[], Iterable[NDArray[np.float32]]]
Counts = NDArray[np.int64]

BINS = 1023  # odd, so that zero has a bin of its own
LEVELS = 127
PERCENTILE = 99.99
SHARES = np.linspace(0.2, 1.0, 81)


@dataclass(frozen=True, slots=True)
class Span:
    """The least and the greatest value of a tensor."""

    lowest: float
    highest: float

    @property
    def largest(self) -> float:
        """The greatest absolute value."""
        return max(-self.lowest, self.highest, 0.0)


def percentile(counts: Counts, largest: float) -> float:
    """The magnitude that 99.99 % of the values stay below."""
    middles, sizes = _folded(counts, largest)
    index = int(np.searchsorted(np.cumsum(sizes) / sizes.sum(), PERCENTILE / 100.0))
    return float(min(middles[min(index, len(middles) - 1)] + largest / BINS, largest))


def entropy(counts: Counts, largest: float) -> float:
    """The threshold of least divergence between the values and their 8-bit form (ONNX Runtime's search)."""
    collector = HistogramCollector("entropy", True, BINS, LEVELS + 1, 100.0, "same")
    edges = np.linspace(-largest, largest, BINS + 1, dtype=np.float32)
    low, high = collector.get_entropy_threshold((counts, edges, edges[0], edges[-1]), LEVELS + 1)
    return float(min(max(-low, high), largest))


def mse(counts: Counts, largest: float) -> float:
    """The threshold of least squared error of rounding and clipping, among shares of the largest value."""
    middles, sizes = _folded(counts, largest)
    steps = SHARES[:, None] * largest / LEVELS
    rounded = np.minimum(np.rint(middles / steps), LEVELS) * steps
    return float(SHARES[int((sizes * (middles - rounded) ** 2).sum(axis=1).argmin())] * largest)


def min_max(counts: Counts, largest: float) -> float:
    """The largest magnitude."""
    return largest


METHODS: dict[str, Callable[[Counts, float], float]] = {
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
    "min-max": min_max,
}


def check_method(method: str) -> None:
    """Raise InputError if there is no such method."""
    if method not in METHODS:
        raise InputError(f"the range method {method!r} is unknown: expected one of {', '.join(METHODS)}")


def spans(content: bytes, images: Images) -> dict[str, Span]:
    """The span of the image and of every node's floating-point output.

    Args:
        images: gives a fresh pass over the calibration images (C, H, W) at each call.

    Raises:
        ExportError: if there is no image, or a value is not finite.
    """
    names = float_tensors(parse_onnx(content))
    lowest, highest = dict.fromkeys(names, np.inf), dict.fromkeys(names, -np.inf)
    for number, tensors in enumerate(watched(content, names, images), start=1):
        for name, values in tensors.items():
            low, high = float(values.min()), float(values.max())
            if not np.isfinite([low, high]).all():
                raise ExportError(
                    f"calibration image {number} gives the tensor {name} a value that is not finite: leave that image "
                    "out, or train the network anew"
                )
            lowest[name], highest[name] = min(lowest[name], low), max(highest[name], high)
    if names and not np.isfinite(lowest[names[0]]):
        raise ExportError("there is no calibration image: give a cohort with a train split")
    return {name: Span(lowest[name], highest[name]) for name in names}


def thresholds(
    content: bytes, images: Images, found: Mapping[str, Span], method: str, names: Collection[str]
) -> dict[str, float]:
    """Per tensor, the magnitude that INT8's 127 stands for; 0 for a tensor that is always 0.

    Args:
        found: the spans of the same images.

    Raises:
        InputError: if the method is unknown.
        ExportError: if a threshold is not finite.
    """
    check_method(method)
    limits = {name: found[name].largest for name in names}
    if method == "min-max":
        return limits
    live = [name for name, largest in limits.items() if largest > 0]
    counts = {name: np.zeros(BINS, dtype=np.int64) for name in live}
    for tensors in watched(content, live, images) if live else ():
        for name, values in tensors.items():
            counts[name] += np.histogram(values, BINS, range=(-limits[name], limits[name]))[0]
    chosen = limits | {name: METHODS[method](counts[name], limits[name]) for name in live}
    for name, value in chosen.items():
        if not (np.isfinite(value) and 0 <= value <= limits[name]):
            raise ExportError(f"the {method} range of {name} came out as {value}: use --range min-max")
    return chosen


def second_moments(content: bytes, images: Images, axes: Mapping[str, int]) -> dict[str, NDArray[np.float64]]:
    """Mean of z z^T (r, r) over images and positions, of tensors z by name, with the axis that has their r channels."""
    sums: dict[str, NDArray[np.float64]] = {}
    count = 0
    for tensors in watched(content, axes, images):
        count += 1
        for name, values in tensors.items():
            z = np.moveaxis(values.astype(np.float64), axes[name], 0).reshape(values.shape[axes[name]], -1)
            sums[name] = sums.get(name, np.zeros(())) + z @ z.T / z.shape[1]
    return {name: total / count for name, total in sums.items()}


def watched(content: bytes, names: Collection[str], images: Images) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The named tensors on each image, batch 1."""
    model = parse_onnx(content)
    shown = {item.name for item in (*model.graph.output, *model.graph.input)}
    extra_outputs = [name for name in names if name not in shown]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs)
    inner = [name for name in names if name not in {item.name for item in model.graph.input}]
    session = open_session(model)
    for image in images():
        values = session.run(inner, {"image": image[None]}) if inner else []
        first = {"image": image[None]} if "image" in names else {}
        yield first | dict(zip(inner, values, strict=True))


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A quiet session on the CPU."""
    return onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(2), providers=["CPUExecutionProvider"]
    )


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """The floating-point input, and every node's floating-point outputs, in the graph's order."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    kinds = {
        item.name: item.type.tensor_type.elem_type for item in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    made = [*(item.name for item in inferred.input), *(name for node in inferred.node for name in node.output)]
    return [name for name in made if kinds.get(name) == onnx.TensorProto.FLOAT]


def _folded(counts: Counts, largest: float) -> tuple[NDArray[np.float64], Counts]:
    """Magnitudes at the middles of the bins, and how many values have them; zero's bin first."""
    half = BINS // 2
    middles = np.arange(half + 1, dtype=np.float64) * (2.0 * largest / BINS)
    sizes = counts[half:].copy()
    sizes[1:] += counts[:half][::-1]
    return np.asarray(middles, np.float64), sizes
