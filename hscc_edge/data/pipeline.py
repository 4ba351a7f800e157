"""The MONAI pipeline: files -> preprocessed, augmented, batched tensors; deterministic from its seed."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_edge.data.cohort import Cohort
from hscc_edge.data.dicom import read_image
from hscc_edge.data.preprocess import Preprocess
from hscc_edge.errors import HsccError, extra

with extra("workstation"):
    import torch
    from monai.data.dataset import CacheDataset, Dataset
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.dictionary import RandAdjustContrastd, RandGaussianNoised
    from monai.transforms.spatial.dictionary import RandAffined, RandFlipd
    from monai.transforms.transform import Transform
    from torch.utils.data import DataLoader

CACHE_BYTES = 2 << 30


class Read(Transform):
    """MONAI dict transform: the file at "image" -> its pixels after the steps before the channels are repeated.

    It is a `Transform`, since MONAI caches the results of no other callable.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """{"image": Path, ...} -> {"image": tensor (1 or 3, H, W), ...}."""
        return {**item, "image": torch.from_numpy(self.preprocess.begin(read_image(item["image"])))}


class Finish(Transform):
    """MONAI dict transform: the remaining steps of the preprocessing."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """{"image": (1 or 3, H, W), ...} -> {"image": (C, H, W) float32, ...}."""
        pixels = np.asarray(item["image"], dtype=np.float32)
        return {**item, "image": torch.from_numpy(self.preprocess.finish(pixels))}


def augmentation() -> list[Any]:
    """Left-right flips, small turns, shifts and scalings, contrast and noise, on images in 0..1."""
    return [
        RandFlipd("image", prob=0.5, spatial_axis=1),
        RandAffined(
            "image",
            prob=0.8,
            rotate_range=0.17,
            translate_range=(12, 12),
            scale_range=(0.1, 0.1),
            padding_mode="zeros",
            mode="bilinear",
        ),
        RandAdjustContrastd("image", prob=0.3, gamma=(0.8, 1.25)),
        RandGaussianNoised("image", prob=0.3, std=0.02),
    ]


def dataset(cohort: Cohort, preprocess: Preprocess, *, augment: bool = False, cache: bool = False) -> Dataset:
    """A MONAI dataset of {"image": (C, H, W), "label": int}.

    With `cache`, images are kept after their deterministic steps, up to CACHE_BYTES; the others are read each time.
    """
    items = [{"image": cohort.path(item), "label": cohort.label_index(item)} for item in cohort.instances]
    steps = Compose([Read(preprocess), *(augmentation() if augment else []), Finish(preprocess)])
    if not cache:
        return Dataset(items, steps)
    _, height, width = preprocess.shape
    kept = max(CACHE_BYTES // (4 * height * width), 1)
    return CacheDataset(items, steps, cache_num=min(kept, len(items)), num_workers=2, progress=False, copy_cache=False)


def loader(
    cohort: Cohort,
    preprocess: Preprocess,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    augment: bool = False,
    cache: bool = False,
) -> Batches:
    """Batches {"image": (B, C, H, W) float32, "label": (B,) int64}; the same for the same seed."""
    with own_errors():
        data = dataset(cohort, preprocess, augment=augment, cache=cache)
    transform = data.transform
    if isinstance(transform, Compose):
        transform.set_random_state(seed)
    generator = torch.Generator().manual_seed(seed)
    return Batches(DataLoader(data, batch_size=batch_size, shuffle=shuffle, generator=generator))


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of a loader, as often as one asks; a damaged file is our own error, not MONAI's."""

    loader: DataLoader[dict[str, torch.Tensor]]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batches = iter(self.loader)
        while True:
            with one_thread(), own_errors():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: on a single small image several wait for each other (measured: 15 ms against 2 ms)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def own_errors() -> Iterator[None]:
    """Raise the error of ours that MONAI's transforms have wrapped, if there is one."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, HsccError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise cause from None
