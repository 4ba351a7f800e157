"""TensorRT on a GPU: one verified engine, run through named tensors on one stream, by a CUDA graph for each batch size.

Written against the API that TensorRT 10.3 to 11 and TensorRT-RTX share. Not run by this project's tests: none of their
machines has a GPU, so they see its names, its arithmetic and its errors.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import EngineError
from hscc_edge.runtime.engines import EngineFacts
from hscc_edge.runtime.nvidia import checked, load_cuda, load_tensorrt, logger, require_gpu
from hscc_edge.runtime.shapes import check_images, closed

LOG = logging.getLogger(__name__)
AGAIN = "run hscc-edge build again on this machine"


@dataclass(frozen=True, slots=True)
class Buffer:
    """FP32 in page-locked host memory, and as much device memory behind it."""

    host: NDArray[np.float32]
    device: int


@dataclass(frozen=True, slots=True)
class Lane:
    """One batch size: an execution context that is never used for another, and its CUDA graph if it could be captured.

    A context's shapes may not change after a graph was captured from it, so that each batch size has its own.
    """

    batch: int
    context: Any
    graph: Any = None


def batch_sizes(least: int, largest: int) -> tuple[int, ...]:
    """The sizes that batches are padded to: powers of two from `least`, and the largest; one for a static engine."""
    powers = (1 << power for power in range(largest.bit_length()))
    return tuple(sorted({size for size in powers if least <= size < largest} | {largest}))


class TrtRuntime:
    """One engine, one stream, and pinned and device buffers for its largest batch.

    Thread-safe: a lock lets one batch through at a time. The first batch of a size makes a context and a CUDA graph;
    afterwards neither device nor pinned memory is allocated. `infer` returns a copy.
    """

    def __init__(self, facts: EngineFacts, plan: bytes) -> None:
        """Open an engine.

        Args:
            plan: its bytes, which the caller has checked: an engine is native code.

        Raises:
            EngineError: if TensorRT, a GPU or memory is missing, or TensorRT refuses the engine.
        """
        trt, self._cuda = load_tensorrt(), load_cuda()
        require_gpu(self._cuda)
        self._log, self._lock, self._lanes = logger(trt), threading.Lock(), dict[int, Lane]()
        self._name = f"{trt.__name__} {trt.__version__}" + ("" if facts.parity else ", engine not verified")
        self._capturable = not hasattr(trt, "ComputeCapability")  # RTX swaps kernels while it runs
        self._loader = trt.Runtime(self._log)
        self._loader.engine_host_code_allowed = facts.version_compatible
        if facts.dla is not None:
            self._loader.DLA_core = facts.dla
        self._engine = self._loader.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"TensorRT refuses the engine {facts.path} ({self._log.last}): {AGAIN}")
        least, _, largest = (tuple(shape) for shape in self._engine.get_tensor_profile_shape("image", 0))
        kinds = {self._engine.get_tensor_dtype(name) for name in ("image", "logits")}
        if kinds != {trt.DataType.FLOAT}:
            raise EngineError(f"the engine {facts.path} takes or gives another type than FP32: {AGAIN}")
        self._shape, self._sizes = largest[1:], batch_sizes(least[0], largest[0])
        classes = int(self._engine.get_tensor_shape("logits")[-1])
        with ExitStack() as held:
            self._stream = self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking)
            held.callback(self._cuda.cudaStreamDestroy, self._stream)
            self._input = self._buffer(largest, held)
            self._output = self._buffer((largest[0], classes), held)
            self._held: ExitStack | None = held.pop_all()

    @property
    def name(self) -> str:
        """TensorRT and its version, and whether the engine was never verified."""
        return self._name

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) -> logits (B, n); B up to the engine's largest batch, padded to one of `batch_sizes`.

        Raises:
            InputError: if the batch is larger, or an image has another shape than the engine's.
            EngineError: if CUDA or TensorRT fails, or the runtime is closed.
        """
        check_images(images, self._shape, self._sizes[-1])
        with self._lock:
            if self._held is None:
                raise closed(self.name)
            batch = next(size for size in self._sizes if size >= len(images))
            self._input.host[: len(images)] = images
            self._input.host[len(images) : batch] = 0.0
            lane = self._lanes.get(batch) or self._add_lane(batch)
            if lane.graph is None:
                self._enqueue(lane)
            else:
                self._call("cudaGraphLaunch", lane.graph, self._stream)
            self._call("cudaStreamSynchronize", self._stream)
            return self._output.host[: len(images)].copy()

    def close(self) -> None:
        """Free contexts, graphs, buffers and the stream, after the batch in hand; a second call does nothing."""
        with self._lock:
            held, self._held = self._held, None
            if held is not None:
                self._lanes.clear()
                held.close()
                self._engine = self._loader = None

    def _call(self, function: str, *arguments: Any) -> Any:
        return checked(self._cuda, getattr(self._cuda, function)(*arguments))

    def _buffer(self, shape: Sequence[int], held: ExitStack) -> Buffer:
        size = 4 * int(np.prod(shape))
        pinned = self._call("cudaMallocHost", size)
        held.callback(self._cuda.cudaFreeHost, pinned)
        device = self._call("cudaMalloc", size)
        held.callback(self._cuda.cudaFree, device)
        return Buffer(floats_at(int(pinned), shape), int(device))

    def _add_lane(self, batch: int) -> Lane:
        """A context for this batch size, warmed by one run of what lies in the input, then captured."""
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineError(
                f"TensorRT could not make an execution context ({self._log.last}): free memory on the device"
            )
        ready = context.set_input_shape("image", (batch, *self._shape))
        for tensor, buffer in (("image", self._input), ("logits", self._output)):
            ready = ready and context.set_tensor_address(tensor, buffer.device)
        if not ready:
            raise EngineError(f"the engine does not take {batch} images and give logits ({self._log.last}): {AGAIN}")
        lane = Lane(batch, context)
        self._enqueue(lane)
        self._call("cudaStreamSynchronize", self._stream)
        self._lanes[batch] = Lane(batch, context, self._capture(lane) if self._capturable else None)
        return self._lanes[batch]

    def _enqueue(self, lane: Lane) -> None:
        """Copy the input to the device, run, copy the logits back: all on the stream."""
        kinds = self._cuda.cudaMemcpyKind
        to, back = kinds.cudaMemcpyHostToDevice, kinds.cudaMemcpyDeviceToHost
        source, target = self._input.host[: lane.batch], self._output.host[: lane.batch]
        self._call("cudaMemcpyAsync", self._input.device, source.ctypes.data, source.nbytes, to, self._stream)
        if not lane.context.execute_async_v3(int(self._stream)):
            raise EngineError(f"TensorRT could not run the engine ({self._log.last}): {AGAIN}")
        self._call("cudaMemcpyAsync", target.ctypes.data, self._output.device, target.nbytes, back, self._stream)

    def _capture(self, lane: Lane) -> Any:
        """The lane's work as a CUDA graph; None, and a line in the log, for an engine that cannot be captured."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            self._enqueue(lane)
            graph = self._call("cudaStreamEndCapture", self._stream)
        except EngineError:
            self._cuda.cudaStreamEndCapture(self._stream)
            self._cuda.cudaGetLastError()
            LOG.warning("event=cuda_graph_refused batch=%d", lane.batch)
            return None
        found = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        if self._held is not None:
            self._held.callback(self._cuda.cudaGraphExecDestroy, found)
        return found


def floats_at(address: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Memory that lies at an address, as FP32; it must outlive the array."""
    memory = (ctypes.c_float * int(np.prod(shape))).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(tuple(shape))
