"""TensorRT on a GPU: an engine from the cache, run through named tensors on one stream.

Written against the API that TensorRT 10.3 to 11 and TensorRT-RTX share. Not run by this project's tests: none of their
machines has a GPU, so they see only its errors.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.errors import EngineError, InputError, MissingExtraError, extra

PACKAGES = ("tensorrt", "tensorrt_rtx")


def load_tensorrt() -> Any:
    """The TensorRT module of this machine.

    Raises:
        EngineError: if there is none.
    """
    for name in PACKAGES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise EngineError(
        "no TensorRT is installed: on a Jetson use the one of JetPack 6.1 or later, on a workstation run "
        "pip install tensorrt-rtx-cu13 to try a build"
    )


def cache_directory() -> Path:
    """Where engines are kept unless a directory is given: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hscc_edge" / "engines"


def gpu_name() -> str | None:
    """Name and compute capability of the first GPU, as "Orin SM87"; None without a GPU, driver or cuda-python."""
    try:
        with extra("device"):
            from cuda.bindings import runtime as cudart
    except MissingExtraError:
        return None
    error, count = cudart.cudaGetDeviceCount()
    if int(error) != 0 or not count:
        return None
    properties = _checked(cudart, cudart.cudaGetDeviceProperties(0))
    return f"{properties.name.decode()} SM{properties.major}{properties.minor}"


def find_engine(content: bytes, trt: Any, precision: str, cache: Path, gpu: str | None = None) -> Path:
    """The cached engine that was built from these ONNX bytes by this TensorRT, its digest checked.

    Args:
        gpu: what `gpu_name` gives; engines of other GPUs are passed over. None takes any.

    Returns:
        The one for the largest batch, where there are several.

    Raises:
        EngineError: if there is none, or it was altered.
    """
    wanted = {
        "onnx_sha256": hashlib.sha256(content).hexdigest(), "builder": trt.__name__, "version": trt.__version__,
        "precision": precision,
    }  # fmt: skip
    found = [
        (facts.get("max_batch", 0), path, facts.get("sha256"))
        for path, facts in _cached(cache)
        if {key: facts.get(key) for key in wanted} == wanted and _runs_on(str(facts.get("device")), gpu)
    ]
    if not found:
        raise EngineError(
            f"{cache} holds no {precision} engine of this bundle for {trt.__name__} {trt.__version__} (TensorRT): run "
            f"hscc-edge build BUNDLE --precision {precision} on this machine"
        )
    _, path, digest = max(found, key=lambda item: item[:2])
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise EngineError(f"the engine {path} is missing or was altered: run hscc-edge build again")
    return path


def _cached(cache: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Engine paths and facts; what cannot be read is no engine of ours."""
    for path in sorted(cache.glob("*.json")):
        try:
            facts = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(facts, dict):
            yield path.with_suffix(".engine"), facts


def _runs_on(device: str, gpu: str | None) -> bool:
    """Built on this GPU, or for a list of compute capabilities ("SM86+SM89") that has its own."""
    return gpu is None or device == gpu or gpu.rpartition(" ")[2] in device.split("+")


class TrtRuntime:
    """One engine, one execution context, one stream, and device buffers for its largest batch."""

    def __init__(self, bundle: Bundle, onnx_file: str, precision: str) -> None:
        trt = load_tensorrt()
        with extra("device"):
            from cuda.bindings import runtime as cudart
        self._cuda = cudart
        _require_gpu(cudart)
        path = find_engine(bundle.path(onnx_file).read_bytes(), trt, precision, cache_directory(), gpu_name())
        self._loader = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._loader.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(f"TensorRT refuses the engine {path}: run hscc-edge build again on this machine")
        self._context = self._engine.create_execution_context()
        self._largest = tuple(self._engine.get_tensor_profile_shape("image", 0)[2])
        self._classes = int(self._engine.get_tensor_shape("logits")[-1])
        self._version = f"{trt.__name__} {trt.__version__}"
        with ExitStack() as held:
            self._stream = _checked(cudart, cudart.cudaStreamCreate())
            held.callback(cudart.cudaStreamDestroy, self._stream)
            self._input = self._buffer("image", 4 * int(np.prod(self._largest)), held)
            self._output = self._buffer("logits", 4 * self._largest[0] * self._classes, held)
            self._held = held.pop_all()

    def _buffer(self, tensor: str, size: int, held: ExitStack) -> Any:
        """Device memory of `size` bytes behind a tensor of the engine."""
        pointer = _checked(self._cuda, self._cuda.cudaMalloc(size))
        held.callback(self._cuda.cudaFree, pointer)
        if not self._context.set_tensor_address(tensor, int(pointer)):
            raise EngineError(f"the engine has no tensor {tensor!r}: run hscc-edge build again")
        return pointer

    @property
    def name(self) -> str:
        """TensorRT and its version."""
        return self._version

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) -> logits (B, n); B up to the engine's largest batch.

        Raises:
            InputError: if the batch is larger, or an image has another shape than the engine's.
        """
        if len(images) > self._largest[0] or images.shape[1:] != self._largest[1:]:
            raise InputError(f"images of shape {images.shape} were given: the engine takes at most {self._largest}")
        images = np.ascontiguousarray(images, dtype=np.float32)
        logits = np.empty((len(images), self._classes), dtype=np.float32)
        kinds, cuda = self._cuda.cudaMemcpyKind, self._cuda
        to, back = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        _checked(cuda, cuda.cudaMemcpyAsync(self._input, images.ctypes.data, images.nbytes, to, self._stream))
        ready = self._context.set_input_shape("image", images.shape)
        if not ready or not self._context.execute_async_v3(int(self._stream)):
            raise EngineError("TensorRT could not run the engine: run hscc-edge build again on this machine")
        _checked(cuda, cuda.cudaMemcpyAsync(logits.ctypes.data, self._output, logits.nbytes, back, self._stream))
        _checked(cuda, cuda.cudaStreamSynchronize(self._stream))
        return logits

    def close(self) -> None:
        """Free the device buffers and the stream; a second call does nothing."""
        self._held.close()


def _require_gpu(cudart: Any) -> None:
    error, count = cudart.cudaGetDeviceCount()
    if int(error) != 0 or not count:
        raise EngineError(
            f"TensorRT needs an NVIDIA GPU, and CUDA finds none ({error.name}): use --runtime ort, or the device"
        )


def _checked(cudart: Any, answer: Any) -> Any:
    """The value of a CUDA call, or EngineError."""
    error, *values = answer
    if int(error) != 0:
        raise EngineError(f"CUDA failed ({error.name}): free memory on the device, or restart it, and try again")
    return values[0] if values else None
