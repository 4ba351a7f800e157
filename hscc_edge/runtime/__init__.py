"""Runtimes: one protocol, opened by name; none but `eager` needs torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.errors import InputError

RUNTIMES = ("eager", "ort", "trt")
PRECISIONS = {"fp32": "models/model.onnx", "fp16": "models/model.fp16.onnx"}


class Runtime(Protocol):
    """A loaded classifier."""

    @property
    def name(self) -> str:
        """Which runtime and version this is."""

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) -> logits (B, n)."""

    def close(self) -> None:
        """Free what it holds."""


def open_runtime(bundle: Bundle, kind: str = "ort", *, precision: str = "fp32", threads: int = 1) -> Runtime:
    """Open a bundle's classifier.

    Args:
        kind: eager (torch), ort (ONNX Runtime on the CPU) or trt (TensorRT, on a GPU).
        precision: fp32 or fp16: which of the bundle's ONNX files.
        threads: of the CPU runtimes.

    Raises:
        InputError: if the kind or precision is unknown.
        BundleError: if the bundle lacks that ONNX file.
        MissingExtraError: if the runtime's package is not installed.
        EngineError: if TensorRT or a GPU is missing.
    """
    check_precision(precision)
    match kind:
        case "eager":
            from hscc_edge.runtime.eager import EagerRuntime

            return EagerRuntime(bundle, threads)
        case "ort":
            from hscc_edge.runtime.ort import OrtRuntime

            return OrtRuntime(bundle.path(PRECISIONS[precision]), threads)
        case "trt":
            from hscc_edge.runtime.trt import TrtRuntime

            return TrtRuntime(bundle, PRECISIONS[precision], precision)
    raise InputError(f"the runtime {kind!r} is unknown: expected one of {', '.join(RUNTIMES)}")


def check_precision(precision: str) -> None:
    """Raise InputError if there is no such precision."""
    if precision not in PRECISIONS:
        raise InputError(f"the precision {precision!r} is unknown: expected one of {', '.join(PRECISIONS)}")


def infer_each(runtime: Runtime, images: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Logits (n, classes) of images (C, H, W), one call an image, so that every caller gets the same bits."""
    return np.concatenate([runtime.infer(image[None]) for image in images])
