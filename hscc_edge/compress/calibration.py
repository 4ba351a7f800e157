"""What a network makes of each image of a pool, as features to choose calibration images by.

Two kinds, of one streamed pass. `responses`: the input of the last Linear (of the last Conv where there is none),
averaged over positions, and the class probabilities: what the network takes an image for. `moments`: for each layer a
sketch of what that image adds to C and to G, the second moments that a compression is solved from (`statistics.py`),
by products of random signs: E[(r^T y)(s^T y)] = r^T E[y y^T] s. A subset whose mean `moments` are the pool's has, in
the directions of the sketch, its C and G.

Time grows with images x (one pass forward and backward); memory with images x WIDTH, and one batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hscc_edge import durable
from hscc_edge.bundle import Bundle
from hscc_edge.compress.problem import Batch, Progress
from hscc_edge.compress.statistics import fisher_probe
from hscc_edge.data.cohort import Cohort
from hscc_edge.data.pipeline import loader
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.data.subset import ALONE, Relatives, choose, refuse_overlap
from hscc_edge.errors import CohortError, ModelError, extra
from hscc_edge.model.convolution import CONVOLUTIONS
from hscc_edge.model.head import Head, parse_head
from hscc_edge.model.load import load_network

with extra("workstation"):
    import torch
    from safetensors import SafetensorError
    from safetensors.numpy import load_file, save
    from torch import nn

BATCH_SIZE = 32
WIDTH = 256
SKETCH = 16
LAYERS = (nn.Linear, *CONVOLUTIONS)
VERSION = "1"
BY_MOMENTS = ("herding", "importance")


@dataclass(frozen=True, slots=True)
class Features:
    """What a network makes of N images, in the order of their cohort.

    Attributes:
        responses: (N, F), at most WIDTH of the last layer's input and the class probabilities, each half of variance 1.
        moments: (N, 2 SKETCH layers), each layer's C and G of mean square 1 over the pool.
    """

    responses: NDArray[np.float64]
    moments: NDArray[np.float64]


def select(
    cohort: Cohort,
    count: int,
    seed: int,
    *,
    method: str = "random",
    split: str = "train",
    stratify: bool = True,
    features: Features | None = None,
    kin: Relatives = ALONE,
) -> Cohort:
    """`count` calibration images of a split, by a method of `data/subset.py`, none of them of the test split.

    Args:
        features: of the split's images, in their order; a random choice needs none.
        kin: near duplicates.

    Raises:
        CohortError: if a chosen image, its patient or its content is in the test split too, or there are too few.
        InputError: if the method is unknown, or needs features.
    """
    given = None if features is None else kind_of(method, features)
    chosen = choose(cohort.select(split), count, seed, method=method, features=given, stratify=stratify, kin=kin)
    refuse_overlap(chosen, cohort)
    return chosen


def kind_of(method: str, features: Features) -> NDArray[np.float64]:
    """The features that a method chooses by: those that estimate means read moments, those that spread responses."""
    return features.moments if method in BY_MOMENTS else features.responses


def check_classes(bundle: Bundle, cohort: Cohort) -> None:
    """Raise CohortError unless the cohort's classes are the bundle's."""
    if cohort.classes != bundle.spec.labels:
        raise CohortError(
            f"the cohort's classes {cohort.classes} are not the bundle's {bundle.spec.labels}: give its own cohort"
        )


def features_of(
    bundle: Bundle, cohort: Cohort, progress: Progress | None = None, cache: Path | None = None
) -> Features:
    """The features of every image of `cohort`.

    Args:
        cache: a directory that keeps them, by bundle and images.

    Raises:
        CohortError: if the cohort's classes are not the bundle's.
        ModelError: if the network has neither Linear nor Conv, or its logits are not finite.
    """
    check_classes(bundle, cohort)
    path = None if cache is None else cache / f"features-{_key(bundle, cohort)}.safetensors"
    raw = _read(path)
    if raw is None:
        preprocess = parse_preprocess(bundle.spec.preprocess)
        batches = loader(cohort, preprocess, batch_size=BATCH_SIZE, shuffle=False, seed=0)
        raw = measure(load_network(bundle), parse_head(bundle.spec.head), batches, progress)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            durable.write_bytes(path, save(raw))
    return scaled(raw)


def scaled(raw: Mapping[str, NDArray[np.float32]]) -> Features:
    """Features in units of the pool: see `Features`."""
    halves = [_unit_variance(raw["last"]), _unit_variance(raw["probabilities"])]
    moments = np.asarray(raw["moments"], dtype=np.float64)
    blocks = moments.reshape(len(moments), -1, SKETCH)
    size = np.sqrt((blocks**2).mean(axis=(0, 2), keepdims=True))
    return Features(np.hstack(halves), (blocks / np.where(size > 0, size, 1.0)).reshape(moments.shape))


def _unit_variance(values: NDArray[np.float32]) -> NDArray[np.float64]:
    centred = np.asarray(values, dtype=np.float64) - values.mean(axis=0, dtype=np.float64)
    total = float((centred**2).sum(axis=1).mean())
    return np.asarray(centred / np.sqrt(total) if total > 0 else centred)


def measure(
    network: nn.Module, head: Head, batches: Iterable[Batch], progress: Progress | None = None
) -> dict[str, NDArray[np.float32]]:
    """One pass: "last" (N, F), "probabilities" (N, n) and "moments" (N, 2 SKETCH layers), a row an image.

    An image's row of "moments" is the same in any order and batch but for the random factor of its Fisher.
    """
    rows: dict[str, list[torch.Tensor]] = {"last": [], "probabilities": [], "moments": []}
    for number, batch in enumerate(batches):
        images = batch["image"]
        found = _one(network, head, images, torch.Generator().manual_seed(number))
        for name, values in found.items():
            rows[name].append(values)
        if progress is not None:
            progress(len(images), "features")
    return {name: torch.cat(parts).numpy().astype(np.float32) for name, parts in rows.items()}


def _one(network: nn.Module, head: Head, images: torch.Tensor, generator: torch.Generator) -> dict[str, torch.Tensor]:
    outputs: dict[str, list[torch.Tensor]] = {}
    inputs: dict[str, torch.Tensor] = {}
    linear = {name: isinstance(module, nn.Linear) for name, module in network.named_modules()}

    def watch(name: str) -> Callable[..., torch.Tensor]:
        def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            if len(output) % len(images):
                return output  # a layer that sees no image, as one of relative positions
            kept = output if output.requires_grad else output.detach().requires_grad_()
            outputs.setdefault(name, []).append(kept)
            inputs[name] = args[0].detach()
            return kept.clone()  # an activation that works in place must not change what was kept

        return hook

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if isinstance(module, LAYERS):
                stack.callback(module.register_forward_hook(watch(name)).remove)
        logits = network(images)
    if not outputs:
        raise ModelError("the network has no Linear and no Conv: choose calibration images at random")
    loss = fisher_probe(logits, head, generator)
    flat = [(name, output) for name, calls in outputs.items() for output in calls]
    gradients = torch.autograd.grad(loss, [output for _, output in flat], allow_unused=True)
    sketches: dict[str, torch.Tensor] = {}
    for (name, output), gradient in zip(flat, gradients, strict=True):
        given = torch.zeros_like(output) if gradient is None else gradient
        found = torch.cat(
            [_sketch(_rows(part.detach(), linear[name], len(images)), name) for part in (output, given)], dim=1
        )
        sketches[name] = sketches[name] + found if name in sketches else found
    last = max((name for name in outputs if linear[name]), key=list(inputs).index, default=list(inputs)[-1])
    return {
        "last": _narrow(_rows(inputs[last], linear[last], len(images)).mean(dim=1)),
        "probabilities": logits.detach().softmax(1) if head.kind == "softmax" else logits.detach().sigmoid(),
        "moments": torch.cat(list(sketches.values()), dim=1),
    }


def _rows(maps: torch.Tensor, linear: bool, images: int) -> torch.Tensor:
    """(images, positions, m) of a layer's maps; an image's windows or views lie side by side along the batch."""
    last = maps if linear else maps.flatten(2).transpose(1, 2)
    return last.reshape(images, -1, last.shape[-1])


def _signs(rows: int, columns: int, name: str) -> torch.Tensor:
    """Random signs (rows, columns), the same for the same name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    return 2.0 * torch.randint(0, 2, (rows, columns), generator=torch.Generator().manual_seed(seed)) - 1.0


def _sketch(rows: torch.Tensor, name: str) -> torch.Tensor:
    """(B, positions, m) -> (B, SKETCH): the mean over positions of (r^T y)(s^T y)."""
    signs = _signs(rows.shape[-1], 2 * SKETCH, name)
    found = rows @ signs
    return torch.mean(found[..., :SKETCH] * found[..., SKETCH:], dim=1)


def _narrow(values: torch.Tensor) -> torch.Tensor:
    """At most WIDTH columns: distances are kept by random signs (Johnson and Lindenstrauss; Achlioptas 2003)."""
    if values.shape[1] <= WIDTH:
        return values
    return torch.matmul(values, _signs(values.shape[1], WIDTH, "last") / WIDTH**0.5)


def _key(bundle: Bundle, cohort: Cohort) -> str:
    order = [item.digest for item in cohort.instances]
    return hashlib.sha256(repr((VERSION, bundle.digest, order)).encode()).hexdigest()[:24]


def _read(path: Path | None) -> dict[str, NDArray[np.float32]] | None:
    """The file's arrays; a file that is damaged counts as none."""
    try:
        return load_file(path) if path is not None and path.is_file() else None
    except (SafetensorError, OSError):
        return None
