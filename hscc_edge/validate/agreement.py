"""Is what is deployed the network that was trained? Engine against ONNX against torch, on images of the split."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.data.case import inputs_of, load
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import EngineError, ExportError, MissingExtraError
from hscc_edge.export.parity import Parity, parity
from hscc_edge.runtime import PRECISIONS, Runtime, open_runtime

IMAGES = 16
Open = Callable[[], Runtime]


def parities(
    bundle: Bundle, part: Cohort, precision: str, names: tuple[str, ...] = ("onnx", "engine")
) -> tuple[dict[str, Parity], dict[str, str]]:
    """Parity by name, and why the others were not run.

    "onnx" is the graph of `precision` against torch, "engine" TensorRT's newest engine against that graph. What is not
    FP32 is emulated, since ONNX Runtime's CPU computes it in FP32, which would hide an overflow.
    """
    found: dict[str, Parity] = {}
    not_run: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:

        def graph() -> Runtime:
            return _graph(bundle, precision, Path(scratch))

        ways: Mapping[str, tuple[Open, Open]] = {
            "onnx": (lambda: open_runtime(bundle, "eager"), graph),
            "engine": (graph, lambda: open_runtime(bundle, "trt", precision=precision, unverified=True)),
        }
        for name in names:
            try:
                found[name] = _parity(ways[name], _images(bundle, part), precision != "fp32")
            except (MissingExtraError, EngineError, ExportError) as error:
                not_run[name] = str(error)
    return found, not_run


def _graph(bundle: Bundle, precision: str, scratch: Path) -> Runtime:
    if precision == "fp32":
        return open_runtime(bundle, "ort")
    from hscc_edge.export.precision import emulated_fp16
    from hscc_edge.runtime.ort import OrtRuntime

    path = scratch / "emulated.onnx"
    path.write_bytes(emulated_fp16(bundle.path(PRECISIONS[precision]).read_bytes()))
    return OrtRuntime(path)


def _parity(way: tuple[Open, Open], images: Iterator[NDArray[np.float32]], emulated: bool) -> Parity:
    first = way[0]()
    try:
        second = way[1]()
        try:
            return parity(first, second, images, emulated)
        finally:
            second.close()
    finally:
        first.close()


def _images(bundle: Bundle, part: Cohort) -> Iterator[NDArray[np.float32]]:
    preprocess = parse_preprocess(bundle.spec.preprocess)
    inputs = inputs_of(part, preprocess)
    step = max(len(inputs) // IMAGES, 1)
    return (load(part, items, preprocess) for items in inputs[::step][:IMAGES])
