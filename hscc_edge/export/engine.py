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
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.errors import EngineError, MissingExtraError, extra
from hscc_edge.export.builder import (
    BuildOptions,
    configure,
    fallbacks,
    load_timing,
    logger,
    network_flags,
    open_builder,
    saved_timing,
    targets,
)
from hscc_edge.export.inspection import Inspection, read_inspection, read_network, require_precision
from hscc_edge.runtime.trt import gpu_name, load_tensorrt

INSPECTED = "engine inspected, not run"
PARSED = "engine not inspected and not run: types checked on the parsed, strongly typed network"
LIMITS = {"max_batch": (1, 1024), "workspace_mib": (1, 1 << 20)}


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What was built.

    Attributes:
        inspected: True if the built engine's layers were read back, which needs a GPU; else the types of the parsed,
            strongly typed network were checked.
        device: the GPU's name and compute capability, or without one the capabilities that were built for.
        cuda: CUDA's runtime version, such as 12060 for 12.6; 0 where no cuda-python is installed.
        full_layers: layers that compute in FP32 though less was asked for, because the graph keeps them so.
        dla_fallbacks: layers that were meant for the DLA and run on the GPU.
        reformats: layers that only change a tensor's format or type.
        executed: False always here; `validate` runs engines.
        reused: True if an intact engine of the same key stood in the cache, and nothing was built.
    """

    builder: str
    version: str
    device: str
    precision: str
    max_batch: int
    bytes: int
    half_layers: int
    layers: int
    inspected: bool
    executed: bool
    seconds: float
    path: str
    onnx_sha256: str
    sha256: str
    note: str
    cuda: int = 0
    best_batch: int = 1
    workspace_mib: int = 1024
    version_compatible: bool = False
    refittable: bool = False
    dla: int | None = None
    power_mode: str = ""
    quantised_layers: int = 0
    reformats: int = 0
    full_layers: tuple[str, ...] = ()
    dla_fallbacks: tuple[str, ...] = ()
    reused: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


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
        EngineError: if TensorRT is missing or lacks what an option needs, refuses the graph, or the graph has not the
            precision that was asked for.
        StorageError: if `cache` cannot be written.
    """
    options = options or BuildOptions()
    _check(options, max_batch)
    trt, gpu = load_tensorrt(), gpu_name()
    log = logger(trt)
    builder = open_builder(trt, log)
    network = builder.create_network(network_flags(trt, options.dla is not None))
    found = _parse(trt, network, log, content, precision, options)
    config = configure(
        trt, builder, options, precision=precision, shape=shape, max_batch=max_batch, gpu=gpu is not None
    )
    device, cuda = gpu or targets(config), cuda_version()
    asked = asdict(options) | {
        "onnx_sha256": hashlib.sha256(content).hexdigest(), "builder": trt.__name__, "version": trt.__version__,
        "cuda": cuda, "device": device, "precision": precision, "max_batch": max_batch, "shape": list(shape),
    }  # fmt: skip
    path = cache / f"{engine_key(asked)}.engine"
    if (known := _intact(path, asked)) is not None:
        return replace(known, reused=True)
    started = time.perf_counter()
    engine = _build(trt, builder, network, config, log, path, timing=_timing_path(cache, asked) if gpu else None)
    seconds = time.perf_counter() - started
    inspected = _inspect(trt, engine, log, precision, options) if gpu else None
    found = inspected or found
    stored = {key: value for key, value in asked.items() if key in {item.name for item in fields(EngineFacts)}}
    facts = EngineFacts(
        **stored, bytes=len(engine), half_layers=found.half, layers=found.layers, quantised_layers=found.quantised,
        reformats=found.reformats, full_layers=() if precision == "fp32" else found.full,
        dla_fallbacks=fallbacks(network, config, options), inspected=inspected is not None, executed=False,
        seconds=seconds, path=str(path), sha256=hashlib.sha256(engine).hexdigest(),
        note=INSPECTED if inspected else PARSED if gpu else f"{PARSED} (no GPU)",
    )  # fmt: skip
    durable.write_bytes(path, engine)
    durable.write_json(path.with_suffix(".json"), facts.to_json())
    return facts


def read_engine(path: Path) -> EngineFacts:
    """The facts of an engine in a cache, its digest checked.

    Raises:
        EngineError: if it is missing, altered, or no engine of this package.
    """
    try:
        facts = json.loads(path.with_suffix(".json").read_bytes())
        found = EngineFacts(**{**facts, "path": str(path)})
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError, TypeError) as error:
        raise EngineError(f"{path} is no engine with its facts beside it: run hscc-edge build") from error
    if digest != found.sha256:
        raise EngineError(f"the engine {path} was altered: run hscc-edge build again")
    return replace(found, full_layers=tuple(found.full_layers), dla_fallbacks=tuple(found.dla_fallbacks))


def engine_key(asked: dict[str, Any]) -> str:
    """Name of the engine that these facts ask for: 32 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]


def cuda_version() -> int:
    """CUDA's runtime version, such as 12060 for 12.6; 0 without cuda-python."""
    try:
        with extra("device"):
            from cuda.bindings import runtime as cudart
    except MissingExtraError:
        return 0
    error, version = cudart.cudaRuntimeGetVersion()
    return int(version) if int(error) == 0 else 0


def _check(options: BuildOptions, max_batch: int) -> None:
    for name, value in (("max_batch", max_batch), ("workspace_mib", options.workspace_mib)):
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise EngineError(f"{name} is {value}: expected {low} to {high}")
    if not 1 <= options.best_batch <= max_batch:
        raise EngineError(f"best_batch is {options.best_batch}: expected 1 to the largest batch, {max_batch}")
    if not 0.0 <= options.least_share <= 1.0:
        raise EngineError(f"least_share is {options.least_share}: expected 0 to 1")


def _intact(path: Path, asked: dict[str, Any]) -> EngineFacts | None:
    """The facts of an engine that was built for exactly this and not altered since; None for anything else."""
    try:
        known = read_engine(path)
    except EngineError:
        return None
    facts = json.loads(json.dumps(known.to_json()))
    return known if all(facts[key] == value for key, value in asked.items() if key in facts) else None


def _timing_path(cache: Path, asked: dict[str, Any]) -> Path:
    where = {key: asked[key] for key in ("builder", "version", "cuda", "device", "power_mode")}
    return cache / f"{engine_key(where)}.timing"


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
