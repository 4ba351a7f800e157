"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ExportError, extra

with extra("device"):
    import onnxruntime


class OrtRuntime:
    """An ONNX file with one input "image" (B, C, H, W) and one output "logits" (B, n)."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes with no narrower common base
            raise ExportError(
                f"{path} cannot be opened by ONNX Runtime ({type(error).__name__}): export the bundle again"
            ) from error

    @property
    def name(self) -> str:
        """ONNX Runtime, its version and provider."""
        return f"onnxruntime {onnxruntime.__version__} CPU"

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) -> logits (B, n)."""
        return np.asarray(self._session.run(["logits"], {"image": images})[0])

    def close(self) -> None:
        """Nothing is held beyond memory."""
