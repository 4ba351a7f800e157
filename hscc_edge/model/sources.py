"""Where a hospital's own model may come from; each becomes an ONNX file, and what it was stays at hand to compare with.

A Python factory and a MONAI bundle's `network_def` are code, and run; a program of torch.export is opened by torch,
which evaluates the sizes written in it. Weights are only read (`model/state.py`).
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hscc_edge.errors import InputError, ModelError, extra
from hscc_edge.model.onnx_source import first_line
from hscc_edge.model.state import load_state, read_state

with extra("workstation"):
    import onnx
    import torch
    from monai.bundle.config_parser import ConfigParser
    from torch import nn

OPSET = 18
SCRIPT_OPSET = 17
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
PROGRAM = re.compile(
    r"archive_\w+|byteorder|\.data/\w+|models/\w+\.json|data/sample_inputs/\w+\.pt|extra/.*"
    r"|data/(weights|constants)/((weight|tensor)_\d+|\w+_config\.json)"
)
CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
MONAI_WEIGHTS = ("model.safetensors", "model.pt")
EXPECTED = (
    "expected model.onnx, model.pt2 of torch.export, model.ts of TorchScript, a MONAI bundle directory, or "
    "package.module:function with --weights"
)
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """A source as an ONNX file.

    Attributes:
        kind: onnx, exported, torchscript, monai-bundle or factory.
        path: the ONNX file.
        files: the files that hold the model, for their digests.
        original: what the file was made from, on images (B, C, H, W); None if it was an ONNX file.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    original: nn.Module | None


def open_source(
    source: str, shape: Shape, scratch: Path, args: Mapping[str, Any] | None = None, weights: Path | None = None
) -> Opened:
    """Turn a source into an ONNX file, in `scratch` unless it is one.

    Args:
        source: a path, or `package.module:function`.
        shape: (C, H, W) of one image.
        args: of the factory.
        weights: of the factory, or instead of a MONAI bundle's own.

    Raises:
        InputError: if the source is missing, is of no such kind, or needs weights and has none.
        ModelError: if it cannot be read, built or traced.
    """
    path, out = Path(source), scratch / "source.onnx"
    if FACTORY.fullmatch(source) and not path.exists():
        if weights is None:
            raise InputError(f"{source} came without weights: give --weights with a .safetensors or .pt state dict")
        network = _with_weights(_built(source, args or {}), weights)
        return _traced("factory", network, shape, out, (weights,))
    if path.is_dir():
        network, weights = _monai(path, weights)
        return _traced("monai-bundle", network, shape, out, (weights,))
    if not path.is_file():
        raise InputError(f"{source} does not exist: {EXPECTED}")
    if weights is not None:
        raise InputError(f"--weights was given with {source}, which holds its own: leave it out")
    return _file(path, shape, out)


def _file(path: Path, shape: Shape, out: Path) -> Opened:
    match path.suffix:
        case ".onnx":
            return Opened("onnx", path, (path,), None)
        case ".pt2":
            program = _program(path)
            _write(out, lambda: torch.onnx.export(program, dynamo=True, **_options(OPSET)))
            with _quiet():
                return Opened("exported", out, (path,), program.module())
        case ".ts" | ".pt" | ".pth":
            scripted = _script(path)
            _write(out, lambda: torch.onnx.export(
                scripted, (torch.zeros(2, *shape),), str(out), dynamo=False, **_options(SCRIPT_OPSET),
                dynamic_axes={"image": {0: "batch"}, "output": {0: "batch"}},
            ))  # fmt: skip
            return Opened("torchscript", out, (path,), scripted)
    raise InputError(f"{path} is of no kind that is known here: {EXPECTED}")


def _options(opset: int) -> dict[str, Any]:
    return {"input_names": ["image"], "output_names": ["output"], "opset_version": opset, "verbose": False}


def _traced(kind: str, network: nn.Module, shape: Shape, out: Path, files: tuple[Path, ...]) -> Opened:
    network = network.eval()
    example = torch.zeros(2, *shape)
    axes = ({0: torch.export.Dim.DYNAMIC},)
    _write(out, lambda: torch.onnx.export(network, (example,), dynamo=True, dynamic_shapes=axes, **_options(OPSET)))
    return Opened(kind, out, files, network)


def _write(out: Path, export: Callable[[], Any]) -> None:
    """Write what an exporter of torch gives, its layers named as in the network.

    Raises:
        ModelError: if torch cannot trace the network.
    """
    try:
        with _quiet():
            program = export()
    except Exception as error:  # whatever a network that cannot be traced makes torch raise
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ModelError(
            f"torch cannot trace the network ({first_line(cause)}): its forward must take one tensor of images of the "
            "recipe's size, any batch, and not branch on their values; or give an ONNX file of it"
        ) from error
    if program is not None:
        model = program.model_proto
        _name_layers(model.graph)
        onnx.save(model, out)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch's exporters say to torch's developers."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _name_layers(graph: onnx.GraphProto) -> None:
    """Call a node by the weight or bias that it is the first to read: features.0 for features.0.weight."""
    makers = {name: node for node in graph.node for name in node.output}
    names = {node.name for node in graph.node}
    for node in graph.node:
        for read in node.input:
            layer, _, kind = read.rpartition(".")
            owner = node if kind == "weight" else _product(makers, node, read) if kind == "bias" else None
            if layer and layer not in names and owner is not None:
                owner.name = layer
                names.add(layer)


def _product(makers: Mapping[str, onnx.NodeProto], node: onnx.NodeProto, bias: str) -> onnx.NodeProto | None:
    """The MatMul to which a bias is added."""
    found = next((makers[name] for name in node.input if name != bias and name in makers), None)
    return found if node.op_type == "Add" and found is not None and found.op_type == "MatMul" else None


def _built(target: str, args: Mapping[str, Any]) -> nn.Module:
    module, _, name = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        network = found(**args)
    except Exception as error:  # the factory is the user's own code
        raise ModelError(
            f"{target} gave no network from the arguments {dict(args)} ({first_line(error)}): mend [network] args in "
            "the recipe, or run where the package can be imported"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"{target} gave a {type(network).__name__}: expected a torch.nn.Module")
    return network


def _with_weights(network: nn.Module, weights: Path) -> nn.Module:
    load_state(network, read_state(weights), weights.name)
    return network


def _monai(root: Path, weights: Path | None) -> tuple[nn.Module, Path]:
    """The network of a MONAI bundle, and the file of its weights."""
    if (root / "configs" / "hscc.json").is_file():
        raise InputError(f"{root} is a bundle of hscc-edge already: compress or export it as it is")
    config = next((root / "configs" / name for name in CONFIGS if (root / "configs" / name).is_file()), None)
    if config is None:
        raise InputError(f"{root} has no configs/inference.json or .yaml: {EXPECTED}")
    found = weights or next((root / "models" / name for name in MONAI_WEIGHTS if (root / "models" / name).is_file()),
                            None)  # fmt: skip
    if found is None:
        raise InputError(f"{root} has no weights in models/model.pt or .safetensors: give --weights")
    return _with_weights(_network_def(root, config), found), found


def _network_def(root: Path, config: Path) -> nn.Module:
    try:
        parser = ConfigParser()
        parser.read_config(str(config))
        parser["bundle_root"] = str(root)
        if "network_def" in parser and parser.get("network_def::pretrained"):
            parser["network_def"]["pretrained"] = False  # the weights come from the bundle, not from elsewhere
        network = parser.get_parsed_content("network_def")
    except Exception as error:  # a bundle may run any code
        raise ModelError(
            f"network_def of {config} gives no network ({first_line(error)}): install what the bundle names, or run "
            "where its own scripts can be imported"
        ) from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"network_def of {config} gave a {type(network).__name__}: expected a torch.nn.Module")
    return network


def _program(path: Path) -> torch.export.ExportedProgram:
    """A saved program; of its pickles torch opens tensors alone, and what else could run is refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] or name for name in archive.namelist()]
        if strange := [name for name in names if not PROGRAM.fullmatch(name)]:
            raise ModelError(f"{path} holds {strange[0]}, which is more than a graph and tensors: export it again")
        with _quiet(), _tensors_alone():
            return torch.export.load(path)
    except ModelError:
        raise
    except Exception as error:  # torch's archives share no narrower class
        raise ModelError(
            f"{path} is no program that can be opened safely ({first_line(error)}): save it by torch.export.save, with "
            "tensors for inputs"
        ) from error


@contextmanager
def _tensors_alone() -> Iterator[None]:
    """Within it torch.load is weights_only, whatever it is told: torch.export.load would fall back to full pickles."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _script(path: Path) -> torch.jit.ScriptModule:
    try:
        with _quiet():
            scripted = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"{path} is no TorchScript: a state dict or a pickled network needs its Python network; give "
            f"package.module:function as source and --weights {path.name}"
        ) from error
    return scripted.eval()  # type: ignore[no-any-return]
