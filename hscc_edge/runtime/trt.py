"""TensorRT on a GPU. Not run in this project's tests: no machine of theirs has a GPU and TensorRT."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.errors import EngineError


class TrtRuntime:
    """Reserved for the device; opening it says why it cannot run."""

    def __init__(self, bundle: Bundle, precision: str) -> None:
        raise EngineError(
            "the TensorRT runtime is not available in this version: build engines with hscc-edge build, and run the "
            "bundle with --runtime ort"
        )

    @property
    def name(self) -> str:
        """TensorRT and its version."""
        return "tensorrt"

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) -> logits (B, n)."""
        raise EngineError("no engine is open: run the bundle with --runtime ort")

    def close(self) -> None:
        """Nothing is held."""
