"""The engine cache: what an engine depends on, which one is active, and the earlier ones to go back to.

    CACHE/<key>.{engine,json,log}              an engine, its facts, its builder's log
    CACHE/active/<bundle digest>.<precision>.json    the engines that were active, the last of them still is

The key is a digest of everything that the engine depends on, so that a file under another name than its facts give is
foreign. Only an engine that passed parity is activated, and only an active one is opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.bundle import Bundle
from hscc_edge.errors import EngineError, InputError

LOG = logging.getLogger(__name__)
SCHEMA = 1
KEY = (
    "onnx_sha256", "builder", "version", "cuda", "device", "precision", "shape", "max_batch", "best_batch",
    "workspace_mib", "version_compatible", "refittable", "dla", "power_mode", "least_share", "refitted_from",
)  # fmt: skip
BUILD = "run hscc-edge build BUNDLE --precision {} --cohort COHORT on this machine"


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What was built.

    Attributes:
        inspected: True if the built engine's layers were read back, which needs a GPU; else the types of the parsed,
            strongly typed network were checked.
        device: the GPU's name and compute capability, or without one the capabilities that were built for.
        cuda: CUDA's runtime version, such as 12060 for 12.6; 0 where no cuda-python is installed.
        shape: (C, H, W) of one image, (C, D, H, W) of a volume.
        full_layers: layers that compute in FP32 though less was asked for, because the graph keeps them so.
        dla_fallbacks: layers that were meant for the DLA and run on the GPU.
        reformats: layers that only change a tensor's format or type.
        refitted_from: digest of the engine that got new weights, "" for one that was built.
        executed: True once it ran on real images and passed parity.
        parity: what that found; None before.
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
    shape: tuple[int, ...] = ()
    best_batch: int = 1
    workspace_mib: int = 1024
    version_compatible: bool = False
    refittable: bool = False
    dla: int | None = None
    power_mode: str = ""
    least_share: float = 0.5
    refitted_from: str = ""
    quantised_layers: int = 0
    reformats: int = 0
    full_layers: tuple[str, ...] = ()
    dla_fallbacks: tuple[str, ...] = ()
    reused: bool = False
    parity: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """Its name in the cache."""
        return engine_key({name: getattr(self, name) for name in KEY})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Host:
    """What runs engines here; `gpu` as `nvidia.gpu_name` gives it, `power_mode` "" where it is not known."""

    builder: str
    version: str
    cuda: int
    gpu: str | None
    power_mode: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """An engine of the cache: its key, its facts if it is intact, else what is wrong, and where it is active."""

    key: str
    facts: EngineFacts | None
    fault: str = ""
    active: tuple[str, ...] = ()


def cache_directory() -> Path:
    """Where engines are kept unless a directory is given: $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hscc_edge" / "engines"


def engine_key(asked: Mapping[str, Any]) -> str:
    """Name of the engine that these facts ask for: 32 hexadecimal digits of the SHA-256 of those in `KEY`."""
    return hashlib.sha256(json.dumps({name: asked[name] for name in KEY}).encode()).hexdigest()[:32]


def engine_path(cache: Path, key: str) -> Path:
    """Where the engine of a key stands, whether there is one or not."""
    return cache / f"{key}.engine"


def write_engine(facts: EngineFacts, plan: bytes) -> None:
    """Put an engine and its facts in their place; a crash between the two leaves an engine that is not opened."""
    durable.write_bytes(Path(facts.path), plan)
    write_facts(facts)


def write_facts(facts: EngineFacts) -> None:
    """Write an engine's facts beside it."""
    durable.write_json(Path(facts.path).with_suffix(".json"), facts.to_json())


def read_engine(path: Path) -> EngineFacts:
    """The facts of an engine in a cache; its digest is checked, and that its name is the key of its facts.

    Raises:
        EngineError: if it is missing, altered, or no engine of this package.
    """
    return open_engine(path)[0]


def open_engine(path: Path) -> tuple[EngineFacts, bytes]:
    """As `read_engine`, with the bytes that were checked, so that they are what is opened."""
    try:
        found = _parse_facts(json.loads(path.with_suffix(".json").read_bytes()), path)
        plan = path.read_bytes()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EngineError(f"{path} is no engine with its facts beside it: run hscc-edge build") from error
    if hashlib.sha256(plan).hexdigest() != found.sha256:
        raise EngineError(f"the engine {path} was altered: run hscc-edge build again")
    if path.stem != found.key:
        raise EngineError(f"the engine {path} is another one than its name says: run hscc-edge build again")
    return found, plan


def _parse_facts(raw: dict[str, Any], path: Path) -> EngineFacts:
    lists = {item.name for item in fields(EngineFacts) if str(item.type).startswith("tuple")}
    values: dict[str, Any] = {name: tuple(value) if name in lists else value for name, value in raw.items()}
    return EngineFacts(**{**values, "path": str(path)})


def misfit(facts: EngineFacts, host: Host) -> str:
    """Why this engine cannot run on `host`, "" if it can.

    A version-compatible engine runs on later TensorRT of the same package, whatever the CUDA. One without a GPU's name
    was built for the compute capabilities that `device` lists.
    """
    if facts.builder != host.builder:
        return f"it was built by {facts.builder}, and here is {host.builder}"
    newer = _numbers(facts.version) < _numbers(host.version)
    if facts.version != host.version and not (facts.version_compatible and newer):
        return f"it was built by TensorRT {facts.version}, and here is {host.version}"
    if facts.cuda != host.cuda and not facts.version_compatible:
        return f"it was built with CUDA {facts.cuda}, and here is {host.cuda}"
    capability = (host.gpu or "").rpartition(" ")[2]
    if host.gpu is not None and facts.device != host.gpu and capability not in facts.device.split("+"):
        return f"it was built for {facts.device}, and here is {host.gpu}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def open_active(bundle: Bundle, precision: str, onnx_sha256: str, cache: Path, host: Host) -> tuple[EngineFacts, bytes]:
    """The engine that is active for a bundle and precision, with its bytes.

    In another power mode than the one it was built in it computes the same, only by kernels that were chosen at other
    clocks: that is logged and not refused.

    Raises:
        EngineError: if none is active, or it is missing, altered, of another graph or does not run on `host`.
    """
    advice, history = BUILD.format(precision), _history(cache, bundle.digest, precision)
    if not history:
        raise EngineError(f"{cache} holds no active {precision} engine of the bundle {bundle.root}: {advice}")
    facts, plan = open_engine(engine_path(cache, history[-1]["key"]))
    if facts.sha256 != history[-1]["sha256"] or facts.parity is None:
        raise EngineError(f"the engine {facts.path} was built anew and not verified since: {advice}")
    if (facts.onnx_sha256, facts.precision) != (onnx_sha256, precision):
        raise EngineError(f"the engine {facts.path} was built from another graph than this bundle's: {advice}")
    if reason := misfit(facts, host):
        raise EngineError(f"the active engine {facts.path} does not run here ({reason}): {advice}")
    if facts.power_mode and host.power_mode and facts.power_mode != host.power_mode:
        LOG.warning("event=power_mode_changed engine=%s built_in=%s", facts.key, facts.power_mode)
    return facts, plan


def find_engine(cache: Path, onnx_sha256: str, precision: str, host: Host) -> tuple[EngineFacts, bytes]:
    """The newest engine of a graph that runs on `host`, verified or not: to measure it, never to serve it.

    Raises:
        EngineError: if there is none.
    """
    for item in reversed(list_engines(cache)):
        facts = item.facts
        if facts is None or (facts.onnx_sha256, facts.precision) != (onnx_sha256, precision):
            continue
        if not misfit(facts, host):
            return open_engine(Path(facts.path))
    raise EngineError(f"{cache} holds no {precision} engine of this bundle that runs here: {BUILD.format(precision)}")


def activate(cache: Path, bundle: Bundle, facts: EngineFacts) -> None:
    """Make a verified engine the one that the runtime opens for this bundle; the one before is kept for `rollback`.

    Raises:
        EngineError: if it did not pass parity.
        InputError: if it was built from another graph than the bundle's.
        StorageError: if the cache cannot be written.
    """
    if facts.parity is None:
        raise EngineError(
            f"the engine {facts.path} was not verified, so that it is not activated: "
            f"{BUILD.format(facts.precision)}, which has a GPU"
        )
    if facts.onnx_sha256 not in bundle.files.values():
        raise InputError(f"the engine {facts.path} was built from another graph than any of {bundle.root}: build one")
    history = [entry for entry in _history(cache, bundle.digest, facts.precision) if entry["key"] != facts.key]
    _write_history(cache, bundle.digest, facts.precision, [*history, {"key": facts.key, "sha256": facts.sha256}])


def rollback(cache: Path, bundle: Bundle, precision: str) -> EngineFacts:
    """Go back to the engine that was active before; the one that is left stays in the cache and can be activated.

    Raises:
        EngineError: if there is none before, or it is missing or altered.
    """
    history = _history(cache, bundle.digest, precision)
    if len(history) < 2:
        raise EngineError(
            f"{len(history)} {precision} engines of {bundle.root} were active in {cache}: expected 2 or more to go back"
        )
    before = read_engine(engine_path(cache, history[-2]["key"]))
    if before.sha256 != history[-2]["sha256"] or before.parity is None:
        raise EngineError(f"the engine {before.path} was built anew and not verified since: build it with --cohort")
    _write_history(cache, bundle.digest, precision, history[:-1])
    return before


def list_engines(cache: Path) -> list[Listed]:
    """Every engine of the cache, the oldest first; each is read whole, so that the cost grows with their bytes."""
    active: dict[str, list[str]] = {}
    for name, history in _histories(cache):
        active.setdefault(history[-1]["key"], []).append(name)
    paths = sorted(cache.glob("*.engine"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return [_listed(path, tuple(active.get(path.stem, ()))) for path in paths]


def _listed(path: Path, active: tuple[str, ...]) -> Listed:
    try:
        return Listed(path.stem, read_engine(path), active=active)
    except EngineError as error:
        return Listed(path.stem, None, str(error), active)


def find_listed(cache: Path, key: str) -> Path:
    """The engine whose key begins with `key`.

    Raises:
        InputError: if there is none, or more than one.
    """
    found = [path for path in sorted(cache.glob("*.engine")) if key and path.stem.startswith(key)]
    if len(found) != 1:
        raise InputError(
            f"{len(found)} engines of {cache} begin with {key!r}: expected one; see hscc-edge engines list"
        )
    return found[0]


def remove_engine(cache: Path, key: str) -> Path:
    """Delete an engine with its facts and log, and forget that it was ever active.

    Raises:
        InputError: if there is none, or it is active.
        StorageError: if it cannot be deleted.
    """
    path = find_listed(cache, key)
    used = [name for name, history in _histories(cache) if history[-1]["key"] == path.stem]
    if used:
        raise InputError(f"the engine {path} is active ({used[0]}): roll back or activate another one first")
    for name, history in _histories(cache):
        digest, _, precision = name.rpartition(".")
        _write_history(cache, digest, precision, [entry for entry in history if entry["key"] != path.stem])
    with durable.storage(path):
        for suffix in (".json", ".log", ".engine"):  # the facts first: without them nothing is opened
            path.with_suffix(suffix).unlink(missing_ok=True)
    return path


def _histories(cache: Path) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """`<bundle digest>.<precision>` and its engines, of every record that has any."""
    for path in sorted((cache / "active").glob("*.json")):
        digest, _, precision = path.stem.rpartition(".")
        if history := _history(cache, digest, precision):
            yield path.stem, history


def _history_path(cache: Path, digest: str, precision: str) -> Path:
    return cache / "active" / f"{digest}.{precision}.json"


def _history(cache: Path, digest: str, precision: str) -> list[dict[str, str]]:
    """Engines that were active, the last of them still is; what cannot be read is none."""
    try:
        entries = json.loads(_history_path(cache, digest, precision).read_bytes())["engines"]
        return [{"key": str(entry["key"]), "sha256": str(entry["sha256"])} for entry in entries]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write_history(cache: Path, digest: str, precision: str, history: list[dict[str, str]]) -> None:
    durable.write_json(_history_path(cache, digest, precision), {"schema": SCHEMA, "engines": history})
