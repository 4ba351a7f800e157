"""Pooling, padding, resizing and rearranging: the ONNX operators that move pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hscc_edge.errors import extra
from hscc_edge.model.onnx_graph import Call
from hscc_edge.model.onnx_layers import Window, window_of

with extra("workstation"):
    import torch
    from torch import fx
    from torch.nn import functional

MAXIMA = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
AVERAGES: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}
PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
NEAREST = {
    ("asymmetric", "floor"): "nearest",
    ("half_pixel", "round_prefer_floor"): "nearest-exact",
    ("half_pixel", "round_prefer_ceil"): "nearest-exact",
    ("tf_half_pixel_for_nn", "floor"): "nearest-exact",
}
"""Torch's word for ONNX's pair of coordinates and rounding."""


def _window(call: Call) -> tuple[Window, tuple[int, ...] | None, bool]:
    """The window, its padding if torch's pools can do it themselves, and whether the last window may be partial."""
    window = window_of(call, call.attributes["kernel_shape"])
    even = window.even
    if even is not None and any(2 * pad > size for pad, size in zip(even, window.kernel, strict=True)):
        even = None  # torch allows padding of half a window
    return window, even, bool(call.attributes.get("ceil_mode", 0))


def max_pool(call: Call) -> fx.Node:
    """MaxPool, without its indices."""
    window, padding, ceil = _window(call)
    x = call.tensor(0) if padding is not None else window.pad(call, call.tensor(0), float("-inf"))
    return call.emit(
        MAXIMA[len(window.kernel)], x, window.kernel, window.stride, padding or (0,) * len(window.kernel),
        window.dilation, ceil,
    )  # fmt: skip


def average_pool(call: Call) -> fx.Node:
    """AveragePool, whichever pixels of the padding it counts."""
    window, padding, ceil = _window(call)
    if any(step != 1 for step in window.dilation):
        call.fail(f"the dilations {window.dilation}", "dilations of 1")
    pool, counted = AVERAGES[len(window.kernel)], bool(call.attributes.get("count_include_pad", 0))
    x, zeros = call.tensor(0), (0,) * len(window.kernel)
    if padding is not None:
        return call.emit(pool, x, window.kernel, window.stride, padding, ceil, counted)
    average = call.emit(pool, window.pad(call, x), window.kernel, window.stride, zeros, ceil)
    if counted:
        return average
    ones = window.pad(call, call.emit(torch.ones_like, x))
    return call.emit(torch.div, average, call.emit(pool, ones, window.kernel, window.stride, zeros, ceil))


def pool_all(function: Callable[..., Any]) -> Callable[[Call], fx.Node]:
    """GlobalAveragePool or GlobalMaxPool: (B, C, *spatial) -> (B, C, 1, ...)."""

    def apply(call: Call) -> fx.Node:
        return call.emit(function, call.tensor(0), tuple(range(2, call.rank())), True)

    return apply


def pad(call: Call) -> fx.Node:
    """Pad, by a constant, by reflection, or by the edge."""
    pads, mode = call.sizes(1, "pads") or [], call.attributes.get("mode", "constant")
    axes, x = call.sizes(3), call.tensor(0)
    n = len(axes) if axes is not None else len(pads) // 2
    rank = call.rank() if axes is not None else n
    pairs: list[tuple[Any, Any]] = [(0, 0)] * rank
    for i, axis in enumerate(axes if axes is not None else range(n)):
        pairs[axis] = (pads[i], pads[i + n])
    used = [i for i, pair in enumerate(pairs) if pair != (0, 0)]
    if not used:
        return x
    if mode == "constant":
        value = call.operand(2) if call.has(2) else call.attributes.get("value", 0.0)
        return call.emit(functional.pad, x, _flat(pairs[used[0] :]), "constant", value)
    # Torch's other modes pad the last axes of an image only: what is padded goes there, and back.
    order = [i for i in range(rank) if i not in used] + used
    turned = call.emit(torch.permute, x, order)
    padded = call.emit(pad_last, turned, _flat([pairs[i] for i in used]), PAD_MODES[mode])
    return call.emit(torch.permute, padded, [order.index(i) for i in range(rank)])


def _flat(pairs: Sequence[tuple[Any, Any]]) -> list[Any]:
    return [amount for pair in reversed(pairs) for amount in pair]


def pad_last(x: torch.Tensor, pads: Sequence[int], mode: str) -> torch.Tensor:
    """Pad the last len(pads) / 2 axes of a tensor of any rank."""
    axes = len(pads) // 2
    lead = x.shape[:-axes]
    image = x.reshape(-1, 1, *x.shape[-axes:])
    return functional.pad(image, pads, mode=mode).reshape(*lead, *_grown(x.shape[-axes:], pads))


def _grown(sizes: Sequence[int], pads: Sequence[int]) -> list[int]:
    n = len(sizes)
    return [size + pads[2 * (n - 1 - i)] + pads[2 * (n - 1 - i) + 1] for i, size in enumerate(sizes)]


def resize(call: Call) -> fx.Node:
    """Resize, or Upsample, of the spatial axes: nearest, linear or cubic."""
    rank, old = call.rank(), call.builder.opset < 11
    scales = call.sizes(1 if old else 2) or None
    sizes = None if old or scales else call.sizes(3)
    axes = [axis % rank for axis in call.attributes.get("axes") or range(rank)]
    if not set(range(2, rank)) <= set(axes):
        call.fail(f"the axes {axes}", "all spatial axes")
    if scales and any(scale != 1 for axis, scale in zip(axes, scales, strict=True) if axis < 2):
        call.fail(f"the scales {scales}", "1 for batch and channels")
    options: dict[str, Any] = _interpolation(call, rank, old)
    given = dict(zip(axes, scales or sizes or (), strict=True))
    options["scale_factor" if scales else "size"] = [given[axis] for axis in range(2, rank)]
    return call.emit(functional.interpolate, call.tensor(0), **options)


def _interpolation(call: Call, rank: int, old: bool) -> dict[str, Any]:
    a = call.attributes
    mode, place = a.get("mode", "nearest"), a.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        rounding = "floor" if old else a.get("nearest_mode", "round_prefer_floor")
        place = "asymmetric" if old else place
        if (place, rounding) not in NEAREST:
            call.fail(f"the coordinates {place} and {rounding}", "such as torch or TensorFlow has")
        return {"mode": NEAREST[place, rounding]}
    if old or place not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        call.fail(f"the coordinates {'asymmetric' if old else place} for {mode}", "half_pixel or align_corners")
    if a.get("antialias", 0) or (mode == "cubic" and (rank != 4 or a.get("cubic_coeff_a", -0.75) != -0.75)):
        call.fail(f"an unusual {mode} interpolation", "no antialias, and -0.75 as a cubic one's coefficient")
    name = "bicubic" if mode == "cubic" else LINEAR[rank]
    return {"mode": name, "align_corners": place == "align_corners"}
