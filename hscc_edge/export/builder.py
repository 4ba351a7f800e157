"""TensorRT's builder, by capability: what a version lacks is asked for by getattr, and its absence is one sentence.

Names were recorded from TensorRT 10.3.0 and 11.4.0 (`tests/export/api/`), so that a call that one of them lacks fails
in the tests. Precision lives in the ONNX graph and the network is strongly typed, with one exception: before TensorRT
11 a DLA takes its precision from the builder's FP16 flag on a weakly typed network (NVIDIA, "Working with DLA").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hscc_edge.errors import EngineError, InputError

RTX_CAPABILITIES = ("SM86", "SM89", "SM120")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        best_batch: the batch that kernels are chosen for, from 1 to the largest.
        workspace_mib: memory that a kernel may use beside weights and activations.
        version_compatible: also runs on later TensorRT of the same package; may be slower.
        refittable: weights of the same plan can be swapped in without a build.
        dla: core of the deep learning accelerator, None for the GPU. A DLA takes no range of shapes: such an engine
            takes exactly the largest batch.
        power_mode: the device's, such as nvpmodel's name; kernels are timed in it, so it is part of the key.
        least_share: of the layers that compute, how many must hold the precision that is asked for.
    """

    best_batch: int = 1
    workspace_mib: int = 1024
    version_compatible: bool = False
    refittable: bool = False
    dla: int | None = None
    power_mode: str = ""
    least_share: float = 0.5


def check_options(options: BuildOptions, max_batch: int) -> None:
    """Refuse options that are out of their range on any machine.

    Raises:
        InputError: if one is.
    """
    ranges = {
        "max_batch": (max_batch, 1, 1024), "workspace_mib": (options.workspace_mib, 1, 1 << 20),
        "best_batch": (options.best_batch, 1, max_batch), "least_share": (options.least_share, 0.0, 1.0),
    }  # fmt: skip
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise InputError(f"{name} is {value}: expected {low} to {high}")
    if options.dla is not None and options.dla < 0:
        raise InputError(f"dla is {options.dla}: expected the number of a core, 0 or more")
    if options.dla is not None and options.best_batch not in (1, max_batch):
        raise InputError(
            f"best_batch is {options.best_batch} for a DLA, which takes batches of exactly max_batch ({max_batch}): "
            "leave it out"
        )


def open_builder(trt: Any, log: Any) -> Any:
    """A builder; `tensorrt` cannot make one without a GPU and says so by a TypeError, `tensorrt_rtx` can.

    Raises:
        EngineError: if it cannot.
    """
    try:
        return trt.Builder(log)
    except TypeError as error:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} cannot start its builder ({log.last}): it needs an NVIDIA GPU with its "
            "driver; run hscc-edge build on the device"
        ) from error


def require_supported(trt: Any, gpu: str | None) -> None:
    """Refuse a GPU that TensorRT-RTX would build for and not run on: it names each compute capability that it knows.

    Args:
        gpu: `runtime.nvidia.gpu_name`.

    Raises:
        EngineError: if it is one between them, as SM87 (Orin) and SM90 (H100) are of 1.7.
    """
    capabilities = getattr(trt, "ComputeCapability", None)
    if capabilities is None or gpu is None:
        return
    known = sorted(int(name[2:]) for name in capabilities.__members__ if name.startswith("SM"))
    number = int(gpu.rpartition("SM")[2])
    if number not in known and number < known[-1]:
        listed = ", ".join(f"SM{one}" for one in known)
        raise EngineError(
            f"{trt.__name__} {trt.__version__} does not run on this GPU ({gpu}), only on {listed} and later: install "
            "NVIDIA's tensorrt package in its place, or use the runtime ort-cuda"
        )


def network_flags(trt: Any, dla: bool) -> int:
    """STRONGLY_TYPED where it exists (10.x needs it, 11 ignores it), EXPLICIT_BATCH where it still does."""
    wanted = ["EXPLICIT_BATCH"] if dla and _has_precision_flags(trt) else ["STRONGLY_TYPED", "EXPLICIT_BATCH"]
    flags = 0
    for name in wanted:
        flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
        flags |= 0 if flag is None else 1 << int(flag)
    return flags


def configure(
    trt: Any, builder: Any, options: BuildOptions, *, precision: str, shape: Sequence[int], max_batch: int, gpu: bool
) -> Any:
    """The builder's configuration, for input "image" of (1 to `max_batch`, *shape).

    Raises:
        EngineError: if this TensorRT lacks what an option needs, or there is no such DLA core.
    """
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default, it would round FP32's products to 10 bits
    least, best = (max_batch, max_batch) if options.dla is not None else (1, options.best_batch)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (least, *shape), (best, *shape), (max_batch, *shape))
    config.add_optimization_profile(profile)
    wanted = {"VERSION_COMPATIBLE": options.version_compatible, "REFIT": options.refittable}
    for name in (name for name, is_wanted in wanted.items() if is_wanted):
        _set_flag(trt, config, name)
    if options.dla is not None:
        _use_dla(trt, builder, config, options.dla, precision)
    capabilities = getattr(trt, "ComputeCapability", None)
    if capabilities is not None:
        _target_rtx(trt, config, options, capabilities, gpu)
    return config


def _target_rtx(trt: Any, config: Any, options: BuildOptions, capabilities: Any, gpu: bool) -> None:
    """TensorRT-RTX names the compute capabilities that it builds for, and takes fewer options."""
    if options.version_compatible:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} has no lean runtime, which version-compatible engines need: build "
            "without that option"
        )
    if options.refittable and not gpu:
        raise EngineError(
            f"{trt.__name__} {trt.__version__} builds a refittable engine only where there is an NVIDIA GPU: build on "
            "the device, or without that option"
        )
    names = ["CURRENT"] if gpu else [name for name in RTX_CAPABILITIES if hasattr(capabilities, name)]
    config.num_compute_capabilities = len(names)
    for index, name in enumerate(names):
        config.set_compute_capability(getattr(capabilities, name), index)


def targets(config: Any) -> str:
    """The compute capabilities that TensorRT-RTX builds for, "unknown" for TensorRT without a GPU."""
    count = getattr(config, "num_compute_capabilities", 0)
    if not count:
        return "unknown"
    return "+".join(config.get_compute_capability(index).name for index in range(count))


def _set_flag(trt: Any, config: Any, name: str) -> None:
    flag = getattr(trt.BuilderFlag, name, None)
    if flag is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} has no builder flag {name}: build without that option")
    config.set_flag(flag)


def _has_precision_flags(trt: Any) -> bool:
    return hasattr(trt.BuilderFlag, "FP16")


def _use_dla(trt: Any, builder: Any, config: Any, core: int, precision: str) -> None:
    allowed = ("fp16",) if _has_precision_flags(trt) else ("fp16", "int8")
    if precision not in allowed:
        raise EngineError(
            f"{precision} was asked for on the DLA of {trt.__name__} {trt.__version__}: it takes {' or '.join(allowed)}"
        )
    if not 0 <= core < builder.num_DLA_cores:
        raise EngineError(
            f"the DLA core {core} was asked for, and {trt.__name__} {trt.__version__} finds {builder.num_DLA_cores} "
            "here: build for the GPU"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    _set_flag(trt, config, "GPU_FALLBACK")
    if _has_precision_flags(trt):
        _set_flag(trt, config, "FP16")


def fallbacks(network: Any, config: Any, options: BuildOptions) -> tuple[str, ...]:
    """Names of layers that the DLA cannot take and the GPU runs; empty without a DLA. The builder's log says why."""
    if options.dla is None:
        return ()
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return tuple(layer.name for layer in layers if not config.can_run_on_DLA(layer))


def load_timing(trt: Any, config: Any, content: bytes | None) -> None:
    """Kernel timings of earlier builds; one that this TensorRT refuses is replaced by an empty one."""
    cache = config.create_timing_cache(content or b"")
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def saved_timing(config: Any) -> bytes:
    """The timings after a build."""
    cache = config.get_timing_cache()
    return bytes(cache.serialize())
