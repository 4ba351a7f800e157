"""New weights in an engine that was built refittable, without a build: for a fine-tuned model of the same plan."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

from hscc_edge.errors import EngineError, InputError
from hscc_edge.runtime.engines import EngineFacts, engine_path, misfit, open_engine, write_engine
from hscc_edge.runtime.nvidia import load_cuda, load_tensorrt, local_host, logger, require_gpu

NOTE = "refitted with new weights; not run"


def refit_engine(source: Path, content: bytes, cache: Path) -> EngineFacts:
    """An engine with the kernels of `source` and the weights of an ONNX graph; `source` stays, and parity is due again.

    Needs a GPU: not run by this project's tests.

    Raises:
        InputError: if the engine was not built refittable.
        EngineError: if there is no GPU, the engine does not run here, or the graph is not of the same plan.
        StorageError: if `cache` cannot be written.
    """
    facts, plan = open_engine(source)
    if not facts.refittable:
        raise InputError(f"the engine {source} was not built refittable: run hscc-edge build --refittable once")
    trt = load_tensorrt()
    require_gpu(load_cuda())
    if reason := misfit(facts, local_host()):
        raise EngineError(f"the engine {source} does not run here ({reason}): run hscc-edge build --refittable")
    started, log = time.perf_counter(), logger(trt)
    loader = trt.Runtime(log)
    loader.engine_host_code_allowed = facts.version_compatible
    engine = loader.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"TensorRT refuses the engine {source} ({log.last}): run hscc-edge build --refittable")
    refitter = trt.Refitter(engine, log)
    weights = trt.OnnxParserRefitter(refitter, log)
    if not weights.refit_from_bytes(content) or not refitter.refit_cuda_engine():
        raise EngineError(
            f"the graph's weights do not fit the engine {source} ({log.last}): only a graph of the same plan does; run "
            "hscc-edge build"
        )
    return _keep(facts, bytes(engine.serialize()), content, cache, time.perf_counter() - started)


def _keep(facts: EngineFacts, plan: bytes, content: bytes, cache: Path, seconds: float) -> EngineFacts:
    """The refitted engine in the cache, under the key of its new graph and of the engine that it was made from."""
    found = replace(
        facts, onnx_sha256=hashlib.sha256(content).hexdigest(), refitted_from=facts.sha256, bytes=len(plan),
        sha256=hashlib.sha256(plan).hexdigest(), seconds=seconds, executed=False, parity=None, note=NOTE,
    )  # fmt: skip
    found = replace(found, path=str(engine_path(cache, found.key)))
    write_engine(found, plan)
    return found
