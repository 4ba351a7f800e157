"""Runtimes: one protocol, opened by name; none but `eager` needs torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.errors import InputError

RUNTIMES = ("eager", "ort", "ort-cuda", "ort-tensorrt", "trt")
PRECISIONS = {"fp32": "models/model.onnx", "fp16": "models/model.fp16.onnx", "int8": "models/model.int8.onnx"}


class Runtime(Protocol):
    """A loaded classifier; threads may share it, and get the same bits as one thread alone."""

    @property
    def name(self) -> str:
        """Which runtime and version this is."""

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W), B of 1 or more -> logits (B, n).

        Raises:
            InputError: if the images have another shape or type than the model takes.
            EngineError: if the runtime fails, or is closed.
        """

    def close(self) -> None:
        """Free what it holds; a second call does nothing."""


def open_runtime(
    bundle: Bundle,
    kind: str = "ort",
    *,
    precision: str = "fp32",
    threads: int = 1,
    cache: Path | None = None,
    unverified: bool = False,
) -> Runtime:
    """Open a bundle's classifier.

    Args:
        kind: eager (torch), ort (ONNX Runtime on the CPU), ort-cuda and ort-tensorrt (its providers on a GPU) or trt
            (TensorRT: the bundle's active engine).
        precision: fp32, fp16 or int8: which of the bundle's ONNX files.
        threads: of the CPU runtimes.
        cache: where trt finds its engine; `engines.cache_directory` by default.
        unverified: trt takes the newest engine, active or not, and its name says so: to measure, never to serve.

    Raises:
        InputError: if the kind or precision is unknown, or this ONNX Runtime has no such provider.
        BundleError: if the bundle lacks that ONNX file.
        MissingExtraError: if the runtime's package is not installed.
        EngineError: if TensorRT, a GPU or an active engine is missing, or a provider does not start.
    """
    check_precision(precision)
    match kind:
        case "eager":
            from hscc_edge.runtime.eager import EagerRuntime

            return EagerRuntime(bundle, threads)
        case "ort" | "ort-cuda" | "ort-tensorrt":
            return _open_ort(bundle.path(PRECISIONS[precision]), kind, precision, threads)
        case "trt":
            return _open_trt(bundle, precision, cache, unverified)
    raise InputError(f"the runtime {kind!r} is unknown: expected one of {', '.join(RUNTIMES)}")


def _open_ort(path: Path, kind: str, precision: str, threads: int) -> Runtime:
    from hscc_edge.runtime.ort import OrtRuntime

    provider = kind.partition("-")[2] or "cpu"
    if provider == "tensorrt" and precision != "fp32":
        raise InputError(
            f"the runtime {kind} was asked for {precision}: its networks are weakly typed before TensorRT 11, so that "
            "FP16 may become FP32 unseen; use fp32, ort-cuda or trt"
        )
    return OrtRuntime(path, threads, provider)


def _open_trt(bundle: Bundle, precision: str, cache: Path | None, unverified: bool) -> Runtime:
    from hscc_edge.runtime.engines import cache_directory, find_engine, open_active
    from hscc_edge.runtime.nvidia import load_cuda, local_host, require_gpu
    from hscc_edge.runtime.trt import TrtRuntime

    graph = bundle.path(PRECISIONS[precision])
    require_gpu(load_cuda())
    place, host, digest = cache or cache_directory(), local_host(), hashlib.sha256(graph.read_bytes()).hexdigest()
    if unverified:
        return TrtRuntime(*find_engine(place, digest, precision, host))
    return TrtRuntime(*open_active(bundle, precision, digest, place, host))


def check_precision(precision: str) -> None:
    """Raise InputError if there is no such precision."""
    if precision not in PRECISIONS:
        raise InputError(f"the precision {precision!r} is unknown: expected one of {', '.join(PRECISIONS)}")


def infer_each(runtime: Runtime, images: Iterable[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Logits (n, classes) of images (C, H, W), one call an image, so that every caller gets the same bits."""
    return infer_batches(runtime, images, 1)


def infer_batches(runtime: Runtime, images: Iterable[NDArray[np.float32]], batch: int) -> NDArray[np.float32]:
    """Logits (n, classes) of images (C, H, W), `batch` of them a call, the last call with what is left.

    A batch may cost less than its images one by one, but an image's last bits may then depend on how many share the
    batch: a library may choose its kernels by it (`benchmarks/batches.py` counts). A decision that must not depend on
    what else was sent takes a batch of 1.
    """
    pending, logits = iter(images), []
    while group := list(islice(pending, batch)):
        logits.append(runtime.infer(np.stack(group)))
    return np.concatenate(logits)
