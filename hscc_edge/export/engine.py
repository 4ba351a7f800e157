"""TensorRT engines: one adapter, by capability, for `tensorrt` (10.3 to 11) and `tensorrt_rtx`.

Precision lives in the ONNX graph and the network is strongly typed, since TensorRT 11 has no precision flags left. An
engine is built on the device that runs it and keyed by everything that it depends on; it stays outside the bundle.
Engines of other keys are left where they are, so that the last good one can be gone back to.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.errors import EngineError
from hscc_edge.export.builder import (
    BuildOptions,
    check_options,
    configure,
    fallbacks,
    load_timing,
    network_flags,
    open_builder,
    require_supported,
    saved_timing,
    targets,
)
from hscc_edge.export.inspection import Inspection, read_inspection, read_network, require_precision
from hscc_edge.runtime.engines import EngineFacts, engine_key, engine_path, read_engine, write_engine
from hscc_edge.runtime.nvidia import cuda_version, gpu_name, load_tensorrt, logger

INSPECTED = "engine inspected, not run"
PARSED = "engine not inspected and not run: types checked on the parsed, strongly typed network"


def build_engine(
    content: bytes,
    *,
    precision: str,
    shape: Sequence[int],
    max_batch: int,
    cache: Path,
    options: BuildOptions | None = None,
) -> EngineFacts:
    """Build a strongly typed engine from ONNX bytes, for batches 1 to `max_batch`, and keep it in `cache`.

    An engine of the same key is taken as it stands, if its digest does; a foreign or altered one is built anew.

    Raises:
        InputError: if an option is out of its range.
        EngineError: if TensorRT is missing or lacks what an option needs, refuses the graph, or the graph has not the
            precision that was asked for.
        StorageError: if `cache` cannot be written.
    """
    options = options or BuildOptions()
    check_options(options, max_batch)
    trt, gpu = load_tensorrt(), gpu_name()
    require_supported(trt, gpu)
    log = logger(trt)
    builder = open_builder(trt, log)
    network = builder.create_network(network_flags(trt, options.dla is not None))
    found = _parse(trt, network, log, content, precision, options)
    config = configure(
        trt, builder, options, precision=precision, shape=shape, max_batch=max_batch, gpu=gpu is not None
    )
    asked = asdict(options) | {
        "onnx_sha256": hashlib.sha256(content).hexdigest(), "builder": trt.__name__, "version": trt.__version__,
        "cuda": cuda_version(), "device": gpu or targets(config), "precision": precision, "max_batch": max_batch,
        "shape": tuple(shape), "refitted_from": "",
    }  # fmt: skip
    path = engine_path(cache, engine_key(asked))
    if (known := _intact(path)) is not None:
        return replace(known, reused=True)
    started = time.perf_counter()
    plan = _build(trt, builder, network, config, log, path, timing=_timing_path(cache, asked) if gpu else None)
    seconds = time.perf_counter() - started
    inspected = _inspect(trt, plan, log, precision, options) if gpu else None
    found = inspected or found
    facts = EngineFacts(
        **asked, bytes=len(plan), half_layers=found.half, layers=found.layers, quantised_layers=found.quantised,
        reformats=found.reformats, full_layers=() if precision == "fp32" else found.full,
        dla_fallbacks=fallbacks(network, config, options), inspected=inspected is not None, executed=False,
        seconds=seconds, path=str(path), sha256=hashlib.sha256(plan).hexdigest(),
        note=INSPECTED if inspected else PARSED if gpu else f"{PARSED} (no GPU)",
    )  # fmt: skip
    write_engine(facts, plan)
    return facts


def _intact(path: Path) -> EngineFacts | None:
    """The facts of an engine that was built for exactly this and not altered since; None for anything else."""
    try:
        return read_engine(path)
    except EngineError:
        return None


def _timing_path(cache: Path, asked: dict[str, Any]) -> Path:
    where = {key: asked[key] for key in ("builder", "version", "cuda", "device", "power_mode")}
    return cache / f"{hashlib.sha256(json.dumps(where).encode()).hexdigest()[:32]}.timing"


def _build(trt: Any, builder: Any, network: Any, config: Any, log: Any, path: Path, timing: Path | None) -> bytes:
    """The serialised engine; the builder's log is kept beside `path`, and kernel timings in `timing` (on a GPU)."""
    log_path = path.with_suffix(".log")
    durable.write_text(log_path, "the build has begun\n")  # an unwritable cache shows now, not after minutes
    keeps_timing = timing is not None and getattr(trt, "ComputeCapability", None) is None  # RTX compiles at run time
    if timing is not None and keeps_timing:
        load_timing(trt, config, timing.read_bytes() if timing.is_file() else None)
    plan = builder.build_serialized_network(network, config)
    durable.write_text(log_path, "\n".join(log.lines) + "\n")
    if plan is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} could not build the engine ({log.last}): see {log_path}")
    if timing is not None and keeps_timing:
        durable.write_bytes(timing, saved_timing(config))
    return bytes(plan)


def _inspect(trt: Any, plan: bytes, log: Any, precision: str, options: BuildOptions) -> Inspection | None:
    """What the engine's own inspector finds, None if it names no types. Needs a GPU: not run by this project's tests.

    Raises:
        EngineError: if the engine does not hold the precision that was asked for.
    """
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot open the engine that it built ({log.last})")
    found = read_inspection(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    if not found.typed:
        return None
    advice = (
        f"{trt.__name__} {trt.__version__} does not keep the precision of the graph; build another one on this device"
    )
    require_precision(found, precision, least=options.least_share, advice=advice)
    return found


def _parse(trt: Any, network: Any, log: Any, content: bytes, precision: str, options: BuildOptions) -> Inspection:
    """Types of the parsed network; refuses a graph that is not what was asked for."""
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        reason = parser.get_error(0).desc() if parser.num_errors else log.last
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot parse the ONNX graph ({reason}): export it again")
    found = read_network(network)
    advice = f"export the bundle again with --precision {precision}"
    require_precision(found, precision, least=options.least_share, advice=advice)
    return found
