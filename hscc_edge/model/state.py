"""Weights that another program has written, read without running code that the file may hold."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hscc_edge.errors import ModelError, extra
from hscc_edge.model.onnx_source import first_line

with extra("workstation"):
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch import nn

WRAPPINGS = ("state_dict", "model_state_dict", "model", "network", "net")
State = Mapping[str, torch.Tensor]


def read_state(path: Path) -> State:
    """A state dict from safetensors, or from a pickle in which torch allows tensors and plain containers alone.

    A dict around it (`{"state_dict": ..., "epoch": ...}`) and DataParallel's "module." before every name are taken off.

    Raises:
        ModelError: if the file is missing, is neither, or holds other Python objects.
    """
    if not path.is_file():
        raise ModelError(f"the weights {path} do not exist: give a .safetensors file, or a .pt with a state dict")
    state = _unwrapped(_content(path))
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path} holds no state dict: expected names and tensors; save network.state_dict()")
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state


def _content(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is a pickle with more in it than tensors, which could run code when opened: save "
            "network.state_dict() alone, best as safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise ModelError(
            f"{path} cannot be read as weights ({first_line(error)}): save network.state_dict() again"
        ) from error


def _unwrapped(content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        return {}
    for key in WRAPPINGS:
        if isinstance(content.get(key), Mapping):
            return _unwrapped(content[key])
    return content


def load_state(network: nn.Module, state: State, whose: str) -> None:
    """Give a network its weights, every one of them.

    Raises:
        ModelError: if names or shapes differ.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t", 1)[-1].split())[:240]
        raise ModelError(
            f"the weights {whose} are not those of the network ({reason}): give the weights and the arguments that "
            "belong together"
        ) from error
