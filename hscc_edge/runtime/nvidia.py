"""What this machine has of NVIDIA: the TensorRT module with a logger, the GPU, CUDA's version, and CUDA's errors."""

from __future__ import annotations

import importlib
from typing import Any

from hscc_edge.errors import EngineError, MissingExtraError, extra
from hscc_edge.power_mode import current_name
from hscc_edge.runtime.engines import Host

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


def logger(trt: Any) -> Any:
    """An ILogger that keeps every line in `lines`, and the last error's first line in `last`."""

    class Collector(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []
            self.last = "no message"

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(f"{severity.name}: {message}")
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = message.strip().splitlines()[0]

    return Collector()


def load_cuda() -> Any:
    """CUDA's runtime API of cuda-python.

    Raises:
        MissingExtraError: if that package is not installed.
    """
    with extra("device"):
        from cuda.bindings import runtime as cudart
    return cudart


def require_gpu(cudart: Any) -> None:
    """Raise EngineError if CUDA finds no GPU."""
    error, count = cudart.cudaGetDeviceCount()
    if int(error) != 0 or not count:
        raise EngineError(
            f"TensorRT needs an NVIDIA GPU, and CUDA finds none ({error.name}): use --runtime ort, or the device"
        )


def gpu_name() -> str | None:
    """Name and compute capability of the first GPU, as "Orin SM87"; None without a GPU, driver or cuda-python."""
    try:
        cudart = load_cuda()
        require_gpu(cudart)
    except (MissingExtraError, EngineError):
        return None
    properties = checked(cudart, cudart.cudaGetDeviceProperties(0))
    return f"{properties.name.decode()} SM{properties.major}{properties.minor}"


def cuda_version() -> int:
    """CUDA's runtime version, such as 12060 for 12.6; 0 without cuda-python."""
    try:
        cudart = load_cuda()
    except MissingExtraError:
        return 0
    error, version = cudart.cudaRuntimeGetVersion()
    return int(version) if int(error) == 0 else 0


def local_host() -> Host:
    """What would run an engine on this machine.

    Raises:
        EngineError: if no TensorRT is installed.
    """
    trt = load_tensorrt()
    return Host(trt.__name__, trt.__version__, cuda_version(), gpu_name(), current_name())


def checked(cudart: Any, answer: Any) -> Any:
    """The value of a CUDA call.

    Raises:
        EngineError: if the call failed; it says so where memory ran out.
    """
    error, *values = answer
    if int(error) == 0:
        return values[0] if values else None
    if error == cudart.cudaError_t.cudaErrorMemoryAllocation:
        raise EngineError(
            f"CUDA has no memory left ({error.name}): end what else uses the GPU, or build with a smaller --max-batch"
        )
    raise EngineError(f"CUDA failed ({error.name}): restart this program, or the device if it fails again")
