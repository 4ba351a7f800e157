"""ONNX Runtime, on the CPU or by its CUDA and TensorRT execution providers where its build has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import EngineError, ExportError, InputError, extra
from hscc_edge.runtime.shapes import check_images, closed

with extra("device"):
    import onnxruntime

# TF32 would round FP32's products to 10 bits without a word.
PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
    "tensorrt": ("TensorrtExecutionProvider", {}),
}
NO_MEMORY = ("allocate memory", "bad allocation", "bad_alloc", "out of memory")


class OrtRuntime:
    """An ONNX file with one input "image" (B, C, H, W) and one output "logits" (B, n), both FP32.

    Thread-safe: ONNX Runtime runs batches of one session side by side.
    """

    def __init__(self, path: Path, threads: int = 1, provider: str = "cpu") -> None:
        """Open the file.

        Args:
            threads: of the CPU provider.
            provider: one of `PROVIDERS`.

        Raises:
            ExportError: if it is no ONNX model, or has another input or output.
            InputError: if this ONNX Runtime has no such provider.
            EngineError: if the provider does not start, where ONNX Runtime alone would go on with the CPU.
        """
        name, options = _available(provider)
        try:
            session = onnxruntime.InferenceSession(str(path), session_options(threads), providers=[(name, options)])
        except Exception as error:  # onnxruntime raises classes with no narrower common base
            raise ExportError(
                f"{path} cannot be opened by ONNX Runtime ({type(error).__name__}): export the bundle again"
            ) from error
        require_provider(session.get_providers(), name)
        session.disable_fallback()
        self._session: Any = session
        self._provider = name.removesuffix("ExecutionProvider")
        self._shape = _input_shape(session, path)

    @property
    def name(self) -> str:
        """ONNX Runtime, its version and provider."""
        return f"onnxruntime {onnxruntime.__version__} {self._provider}"

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) -> logits (B, n).

        Raises:
            InputError: if an image has another shape than the graph's.
            EngineError: if ONNX Runtime fails, such as for want of memory, or the runtime is closed.
        """
        session = self._session
        if session is None:
            raise closed(self.name)
        check_images(images, self._shape)
        try:
            return np.asarray(session.run(["logits"], {"image": images})[0])
        except Exception as error:  # onnxruntime raises classes with no narrower common base
            raise _failed(error, self.name, len(images)) from error

    def close(self) -> None:
        """Let go of the session, which ends with the batch in hand; a second call does nothing."""
        self._session = None


def require_provider(held: list[str], wanted: str) -> None:
    """Refuse a session that fell back: ONNX Runtime goes on with the CPU if a provider does not start.

    Raises:
        EngineError: if `wanted` is not the first that the session holds.
    """
    if held[:1] != [wanted]:
        raise EngineError(
            f"ONNX Runtime could not start its {wanted} and would use {held[0] if held else 'none'}: install the CUDA, "
            "cuDNN and TensorRT that this onnxruntime was built for, or use the runtime ort"
        )


def _available(provider: str) -> tuple[str, dict[str, str]]:
    if provider not in PROVIDERS:
        raise InputError(f"the provider {provider!r} is unknown: expected one of {', '.join(PROVIDERS)}")
    name, options = PROVIDERS[provider]
    held = onnxruntime.get_available_providers()
    if name not in held:
        raise InputError(
            f"this onnxruntime {onnxruntime.__version__} has no {name}, only {', '.join(held)}: install a build for "
            "this device's GPU in its place, or use the runtime ort"
        )
    return name, options


def session_options(threads: int) -> Any:
    """How this project runs ONNX Runtime: in order, `threads` threads, no spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False  # keeps what a batch took; without it batches take no longer
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Else biases become INT32 by a scale that is a product of FP16 scales, which may underflow, and INT8 takes longer.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def _input_shape(session: Any, path: Path) -> tuple[int, ...]:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    ends = [(item.name, item.type) for item in (*inputs, *outputs)]
    if ends != [("image", "tensor(float)"), ("logits", "tensor(float)")]:
        found = ", ".join(f"{name} {kind}" for name, kind in ends)
        raise ExportError(
            f"{path} has the inputs and outputs {found}: expected image and logits, both float; export the bundle again"
        )
    return tuple(inputs[0].shape[1:])


def _failed(error: Exception, name: str, batch: int) -> EngineError:
    """Ours, without ONNX Runtime's text; only whether memory ran out is read from it."""
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
        return EngineError(f"{name} has no memory for a batch of {batch}: free memory, or give fewer images at once")
    return EngineError(f"{name} could not run a batch of {batch} ({type(error).__name__}): export the bundle again")
