"""Statistics on disk, so that a second budget, or a pass that was cut off, need not start anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hscc_edge import durable
from hscc_edge.errors import extra

if TYPE_CHECKING:
    from hscc_edge.compress.statistics import LayerStatistics

with extra("workstation"):
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save


def save_statistics(path: Path, found: Mapping[str, LayerStatistics]) -> None:
    """Write all sums in one file, replaced as a whole."""
    tensors: dict[str, torch.Tensor] = {}
    for name, entry in found.items():
        tensors[f"{name}/images"] = torch.tensor(entry.images)
        for index, cell in enumerate(entry.cells):
            tensors[f"{name}/{index}/count"] = torch.tensor(cell.count)
            tensors[f"{name}/{index}/mean"] = cell.mean
            tensors[f"{name}/{index}/scatter"] = cell.scatter
            tensors[f"{name}/{index}/gradients"] = cell.gradients
        if entry.samples is not None:
            tensors[f"{name}/outputs"] = torch.cat(entry.samples.outputs)
            tensors[f"{name}/output-gradients"] = torch.cat(entry.samples.gradients)
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_bytes(path, save(tensors))


def load_statistics(path: Path, found: Mapping[str, LayerStatistics]) -> int:
    """Fill empty statistics from a file of the same layers and cells; returns how many images it covers, 0 if none."""
    tensors = _read(path)
    if tensors is None or any(not _fits(tensors, name, len(entry.cells)) for name, entry in found.items()):
        return 0
    images = 0
    for name, entry in found.items():
        images = entry.images = int(tensors[f"{name}/images"])
        for index, cell in enumerate(entry.cells):
            cell.count = int(tensors[f"{name}/{index}/count"])
            cell.mean = tensors[f"{name}/{index}/mean"]
            cell.scatter = tensors[f"{name}/{index}/scatter"]
            cell.gradients = tensors[f"{name}/{index}/gradients"]
        if entry.samples is not None:
            entry.samples.outputs = [tensors[f"{name}/outputs"]]
            entry.samples.gradients = [tensors[f"{name}/output-gradients"]]
    return images


def _fits(tensors: Mapping[str, torch.Tensor], name: str, cells: int) -> bool:
    """Whether the file holds this layer with so many cells."""
    last = f"{name}/{cells - 1}/count" in tensors or not cells
    return f"{name}/images" in tensors and last and f"{name}/{cells}/count" not in tensors


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """The file's tensors; a file that is damaged counts as none."""
    try:
        return load_file(path) if path.is_file() else None
    except (SafetensorError, OSError):
        return None
