"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ExportError, InputError, extra

with extra("device"):
    import onnxruntime


class OrtRuntime:
    """An ONNX file with one input "image" (B, C, H, W) and one output "logits" (B, n), both FP32."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        """Open the file.

        Raises:
            ExportError: if it is no ONNX model, or has another input or output.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises classes with no narrower common base
            raise ExportError(
                f"{path} cannot be opened by ONNX Runtime ({type(error).__name__}): export the bundle again"
            ) from error
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        ends = [(item.name, item.type) for item in (*inputs, *outputs)]
        if ends != [("image", "tensor(float)"), ("logits", "tensor(float)")]:
            found = ", ".join(f"{name} {kind}" for name, kind in ends)
            raise ExportError(
                f"{path} has the inputs and outputs {found}: expected image and logits, both float; export the "
                "bundle again"
            )
        self._shape = tuple(inputs[0].shape[1:])

    @property
    def name(self) -> str:
        """ONNX Runtime, its version and provider."""
        return f"onnxruntime {onnxruntime.__version__} CPU"

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) -> logits (B, n).

        Raises:
            InputError: if an image has another shape than the graph's.
        """
        if images.shape[1:] != self._shape:
            raise InputError(f"images of shape {images.shape[1:]} were given: the model takes {self._shape}")
        return np.asarray(self._session.run(["logits"], {"image": images})[0])

    def close(self) -> None:
        """Nothing is held beyond memory."""
