"""TensorRT engines: one adapter, by capability, for `tensorrt` (10.3 to 11) and `tensorrt_rtx`.

Precision lives in the ONNX graph and the network is strongly typed, since TensorRT 11 has no precision flags left. An
engine is built on the device that runs it and keyed by everything that it depends on; it stays outside the bundle.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.errors import EngineError
from hscc_edge.export.inspection import Inspection, read_inspection
from hscc_edge.runtime.trt import gpu_name, load_tensorrt

WORKSPACE_MIB = 1024
RTX_CAPABILITIES = ("SM86", "SM89", "SM120")
INSPECTED = "engine inspected, not run"
PARSED = "engine not inspected and not run: types checked on the parsed, strongly typed network"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What was built.

    Attributes:
        inspected: True if the built engine's layers were read back, which needs a GPU; else the types of the parsed,
            strongly typed network were checked.
        device: the GPU's name and compute capability, or without one the capabilities that were built for.
        executed: False always here; `validate` runs engines.
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

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def build_engine(content: bytes, *, precision: str, shape: Sequence[int], max_batch: int, cache: Path) -> EngineFacts:
    """Build a strongly typed engine from ONNX bytes, for batches 1 to `max_batch`, and keep it in `cache`.

    Raises:
        EngineError: if TensorRT is missing, refuses the graph, or the graph has not the precision that was asked for.
        StorageError: if `cache` cannot be written.
    """
    trt, gpu = load_tensorrt(), gpu_name()
    log = _logger(trt)
    builder = _builder(trt, log)
    network = builder.create_network(_network_flags(trt))
    half, layers = _parse(trt, network, log, content, precision)
    config = _configure(trt, builder, shape, max_batch, gpu)
    device = gpu or _targets(config)
    path = cache / f"{_key(content, trt, device, precision, max_batch)}.engine"
    log_path = path.with_suffix(".log")
    durable.write_text(log_path, "the build has begun\n")  # an unwritable cache shows now, not after minutes
    started = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    durable.write_text(log_path, "\n".join(log.lines) + "\n")
    if plan is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} could not build the engine ({log.last}): see {log_path}")
    engine = bytes(plan)
    found = _inspect(trt, engine, log, precision) if gpu else None
    facts = EngineFacts(
        builder=trt.__name__,
        version=trt.__version__,
        device=device,
        precision=precision,
        max_batch=max_batch,
        bytes=len(engine),
        half_layers=found.half if found else half,
        layers=found.layers if found else layers,
        inspected=found is not None,
        executed=False,
        seconds=seconds,
        path=str(path),
        onnx_sha256=hashlib.sha256(content).hexdigest(),
        sha256=hashlib.sha256(engine).hexdigest(),
        note=INSPECTED if found else PARSED if gpu else f"{PARSED} (no GPU)",
    )
    durable.write_bytes(path, engine)
    durable.write_json(path.with_suffix(".json"), facts.to_json())
    return facts


def _builder(trt: Any, log: Any) -> Any:
    """A builder; `tensorrt` cannot make one without a GPU and says so by a TypeError, `tensorrt_rtx` can."""
    try:
        return trt.Builder(log)
    except TypeError as error:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot start its builder ({log.last}): it needs an NVIDIA GPU with its "
            "driver; run hscc-edge build on the device"
        ) from error


def _inspect(trt: Any, plan: bytes, log: Any, precision: str) -> Inspection | None:
    """What the engine's own inspector finds, None if it names no types. Needs a GPU: not run by this project's tests.

    Raises:
        EngineError: if FP16 was asked for, and no layer of the engine has an FP16 tensor.
    """
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot open the engine that it built ({log.last})")
    found = read_inspection(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    if not found.typed:
        return None
    if precision == "fp16" and not found.half:
        raise EngineError(
            f"fp16 was asked for, and none of the engine's {found.layers} layers is FP16: {trt.__name__} "
            f"{trt.__version__} does not keep the precision of the graph; use fp32 on this device"
        )
    return found


def _logger(trt: Any) -> Any:
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


def _network_flags(trt: Any) -> int:
    """STRONGLY_TYPED where it exists (10.x needs it, 11 ignores it), EXPLICIT_BATCH where it still does."""
    flags = 0
    for name in ("STRONGLY_TYPED", "EXPLICIT_BATCH"):
        flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
        flags |= 0 if flag is None else 1 << int(flag)
    return flags


def _parse(trt: Any, network: Any, log: Any, content: bytes, precision: str) -> tuple[int, int]:
    """(layers with an FP16 output, layers); refuses a graph that is not what was asked for."""
    parser = trt.OnnxParser(network, log)
    if not parser.parse(content):
        reason = parser.get_error(0).desc() if parser.num_errors else log.last
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot parse the ONNX graph ({reason}): export it again")
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    half = sum(
        any(layer.get_output(i).dtype == trt.DataType.HALF for i in range(layer.num_outputs)) for layer in layers
    )
    if (precision == "fp16") != (half > 0):
        raise EngineError(
            f"{precision} was asked for, and {half} of the parsed network's {len(layers)} layers are FP16: export the "
            f"bundle again with --precision {precision}"
        )
    return half, len(layers)


def _configure(trt: Any, builder: Any, shape: Sequence[int], max_batch: int, gpu: str | None) -> Any:
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE_MIB << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, *shape), (1, *shape), (max_batch, *shape))
    config.add_optimization_profile(profile)
    capabilities = getattr(trt, "ComputeCapability", None)
    if capabilities is not None:  # TensorRT-RTX
        names = ["CURRENT"] if gpu else [name for name in RTX_CAPABILITIES if hasattr(capabilities, name)]
        config.num_compute_capabilities = len(names)
        for index, name in enumerate(names):
            config.set_compute_capability(getattr(capabilities, name), index)
    return config


def _targets(config: Any) -> str:
    count = getattr(config, "num_compute_capabilities", 0)
    if not count:
        return "unknown"
    return "+".join(config.get_compute_capability(index).name for index in range(count))


def _key(content: bytes, trt: Any, device: str, precision: str, max_batch: int) -> str:
    parts = [hashlib.sha256(content).hexdigest(), trt.__name__, trt.__version__, device, precision, str(max_batch)]
    parts += ["strongly typed", f"workspace {WORKSPACE_MIB} MiB"]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
