"""A torch network and a graph under ONNX Runtime, run on the same examples and compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.onnx_source import Port, Source, first_line

with extra("workstation"):
    import onnxruntime
    import torch
    from torch import nn

TOLERANCE = 1e-4
HALF_TOLERANCE = 5e-2
IMAGE = {3: 128, 4: 224, 5: 64}
Arrays = tuple[NDArray[Any], ...]
TAILS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "": lambda logits: logits,
    "softmax": lambda logits: np.asarray(softmax(logits, axis=-1)),
    "sigmoid": lambda logits: np.asarray(expit(logits)),
}
"""By tail, what stood after the logits."""


def random_inputs(ports: Sequence[Port]) -> list[Arrays]:
    """Two reproducible examples: normal for numbers, up to 255 for bytes; a batch that varies is 1, then 2."""
    rng = np.random.default_rng(0)
    return [tuple(_random(port, batch, rng) for port in ports) for batch in (1, 2)]


def _random(port: Port, batch: int, rng: np.random.Generator) -> NDArray[Any]:
    shape, dtype = _example_shape(port, batch), np.dtype(port.dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 256 if dtype == np.uint8 else 2, shape).astype(dtype)


def _example_shape(port: Port, batch: int) -> tuple[int, ...]:
    """`batch` for a first axis that varies, three channels and a usual image's size for the others."""
    rank = len(port.shape)
    shape = [size if isinstance(size, int) else IMAGE.get(rank, 16) for size in port.shape]
    if rank and not isinstance(port.shape[0], int):
        shape[0] = batch
    if rank >= 4 and not isinstance(port.shape[1], int) and port.shape[-1] not in (1, 3, 4):
        shape[1] = 3
    return tuple(shape)


def widened(arrays: Arrays) -> Arrays:
    """The arrays with float16 as float32."""
    return tuple(array.astype(np.float32) if array.dtype == np.float16 else array for array in arrays)


def check_source(source: Source, network: nn.Module, examples: Sequence[Arrays]) -> None:
    """Hold a network's logits against ONNX Runtime's, alone, in a batch, and through what was cut off.

    Raises:
        ModelError: if a logit is off by more than 1e-4 of the largest, or the file's own output by more than that
            (5 % if the file is in float16), or if the images of a batch are not treated apart.
    """
    wide = [widened(arrays) for arrays in examples]
    found = [run_torch(network, arrays) for arrays in wide]
    session = open_session(source.model.SerializeToString())
    for arrays, logits in zip(wide, found, strict=True):
        require_equal(logits, run_onnx(session, arrays), "ONNX Runtime's")
    if not source.plain:
        session = open_session(str(source.path))
        for arrays, logits in zip(examples, found, strict=True):
            outputs = tuple(TAILS[tail](array) for tail, array in zip(source.tail, logits, strict=True))
            limit = HALF_TOLERANCE if source.halves else TOLERANCE
            require_equal(outputs, run_onnx(session, arrays), "ONNX Runtime's on the whole file", limit)
    apart = tuple(np.concatenate(parts) for parts in zip(*found, strict=True))
    together = run_torch(network, tuple(np.concatenate(parts) for parts in zip(*wide, strict=True)))
    require_equal(together, apart, "those of the same images in other batches")


def open_session(content: str | bytes) -> Any:
    """An ONNX Runtime session on one CPU thread, of a path or of a graph's bytes.

    Raises:
        ModelError: if ONNX Runtime refuses the graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes with no narrower common base
        raise ModelError(
            f"ONNX Runtime cannot open the graph ({first_line(error)}): export the network again"
        ) from error


def run_onnx(session: Any, arrays: Arrays) -> Arrays:
    """The outputs of a session for one array an input.

    Raises:
        ModelError: if the graph does not run on them.
    """
    names = [item.name for item in session.get_inputs()]
    try:
        return tuple(session.run(None, dict(zip(names, arrays, strict=True))))
    except Exception as error:  # onnxruntime raises classes with no narrower common base
        raise _refusal("ONNX Runtime", arrays, error) from error


def run_torch(network: nn.Module, arrays: Arrays) -> Arrays:
    """The outputs of a network for one array an input.

    Raises:
        ModelError: if the network does not run on them.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = network(*(torch.from_numpy(array) for array in arrays))
    except Exception as error:  # whatever torch raises on a network that does not run
        raise _refusal("torch", arrays, error) from error
    return tuple(item.numpy() for item in (found if isinstance(found, tuple) else (found,)))


def _refusal(where: str, arrays: Arrays, error: Exception) -> ModelError:
    shapes = ", ".join(str(array.shape) for array in arrays)
    return ModelError(
        f"the network does not run in {where} on inputs {shapes} ({first_line(error)}): give examples of its size, or "
        "export it with a batch that varies"
    )


def require_equal(found: Arrays, expected: Arrays, whose: str, tolerance: float = TOLERANCE) -> None:
    """Refuse outputs of another shape, or off by more than `tolerance` of the largest.

    Raises:
        ModelError: if so.
    """
    for number, (first, second) in enumerate(zip(found, expected, strict=True)):
        if first.shape != second.shape:
            raise ModelError(
                f"output {number} of the network has the shape {first.shape}: expected {second.shape} as {whose}; "
                "export the network in another way"
            )
        wide = second.astype(np.float64)
        scale = max(float(np.abs(wide).max(initial=0.0)), float(np.finfo(np.float32).tiny))
        difference = float(np.abs(wide - first).max(initial=0.0)) / scale
        if not difference <= tolerance:
            raise ModelError(
                f"output {number} of the network differs from {whose} by {difference:.2g} of the largest: expected at "
                f"most {tolerance:g}; export the network in another way"
            )
