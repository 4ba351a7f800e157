"""The MONAI pipeline: files -> preprocessed, augmented, batched tensors; the same for a seed, however many workers.

The preprocessing is two transforms, so that MONAI users put their own between its halves; images are in 0..1 there if
the steps make them so:

    steps = Compose([Read(preprocess), RandFlipd("image", prob=0.5, spatial_axis=1), Finish(preprocess)])
    data = CacheDataset([{"image": path, "label": 0}, {"image": other_path, "label": 1}], steps)

(for steps that are for volumes, "image" is the list of a series' paths). `loader(..., augment=[RandFlipd(...)])`
does the same over a cohort.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from hscc_edge.data.cache import kept, key_of
from hscc_edge.data.case import inputs_of, read_input
from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.data.preprocess import Preprocess
from hscc_edge.data.steps import Pixels
from hscc_edge.errors import CohortError, ConfigError, DicomError, HsccError, extra

with extra("workstation"):
    import torch
    from monai.data.dataset import CacheDataset, Dataset
    from monai.transforms.compose import Compose
    from monai.transforms.intensity.dictionary import RandAdjustContrastd, RandGaussianNoised
    from monai.transforms.spatial.dictionary import RandAffined, RandFlipd
    from monai.transforms.traits import RandomizableTrait
    from monai.transforms.transform import Transform
    from torch.utils.data import DataLoader, default_collate

CACHE_BYTES = 2 << 30
ON_ERROR = ("stop", "skip")


class Read(Transform):
    """MONAI dict transform: the file or files at "image" -> pixels after the steps before the channels are repeated.

    It is a `Transform`, since MONAI caches the results of no other callable.

    Args:
        on_error: "stop" raises our own error; with "skip" the item gets "image": None and the error as "fault", and
            `Finish` lets it through.
        store: directory that keeps results from run to run (`data/cache.py`).
    """

    def __init__(self, preprocess: Preprocess, *, on_error: str = "stop", store: Path | None = None) -> None:
        if on_error not in ON_ERROR:
            raise ConfigError(f"on_error is {on_error!r}: expected one of {', '.join(ON_ERROR)}")
        self.preprocess, self.on_error, self.store = preprocess, on_error, store

    def __call__(self, item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """{"image": Path or several, ("frame": int,) ...} -> {"image": tensor (1 or 3, H, W) or (1, D, H, W), ...}."""
        source, frame = item["image"], item.get("frame")
        paths = [source] if isinstance(source, Path) else list(source)
        try:
            return {**item, "image": torch.from_numpy(self._kept(paths, frame))}
        except HsccError as error:
            if self.on_error == "stop":
                raise
            return {**item, "image": None, "fault": error.with_traceback(None)}

    def _kept(self, paths: list[Path], frame: int | None) -> Pixels:
        if self.store is None:
            return self._made(paths, frame)
        key = key_of(paths, self.preprocess.digest, frame)
        return kept(self.store, key, lambda: self._made(paths, frame))

    def _made(self, paths: list[Path], frame: int | None) -> Pixels:
        found = read_input(paths, self.preprocess, frame=frame)
        return self.preprocess.begin(found)


class Augment(Transform, RandomizableTrait):
    """Random transforms, seeded for each item by (seed, epoch, index): what a worker did before changes nothing."""

    def __init__(self, transforms: Sequence[Any], seed: int = 0) -> None:
        self.transforms, self.seed, self.epoch = Compose(list(transforms)), seed, 0

    def __call__(self, item: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        """{"image": tensor, "index": int, ...} -> the same, its image augmented."""
        if item["image"] is None:
            return item
        sequence = np.random.SeedSequence([self.seed, self.epoch, item["index"]])
        self.transforms.set_random_state(seed=int(sequence.generate_state(1)[0]))
        augmented: Mapping[Hashable, Any] = self.transforms(item)
        return augmented


class Finish(Transform):
    """MONAI dict transform: the remaining steps of the preprocessing."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """{"image": what `Read` gave, ...} -> {"image": (C, H, W) or (C, D, H, W) float32, ...}."""
        if item["image"] is None:
            return dict(item)
        pixels = np.asarray(item["image"], dtype=np.float32)
        return {**item, "image": torch.from_numpy(self.preprocess.finish(pixels))}


def augmentation(*, volume: bool = False) -> list[Any]:
    """Left-right flips, small turns within slices, shifts and scalings, contrast and noise, on images in 0..1.

    A volume's columns must run from side to side, as after the step orient to "SPL".
    """
    return [
        RandFlipd("image", prob=0.5, spatial_axis=2 if volume else 1),
        RandAffined(
            "image",
            prob=0.8,
            rotate_range=(0.17, 0, 0) if volume else 0.17,
            translate_range=(1, 12, 12) if volume else (12, 12),
            scale_range=(0, 0.1, 0.1) if volume else (0.1, 0.1),
            padding_mode="zeros",
            mode="bilinear",
        ),
        RandAdjustContrastd("image", prob=0.3, gamma=(0.8, 1.25)),
        RandGaussianNoised("image", prob=0.3, std=0.02),
    ]


def items_of(cohort: Cohort, preprocess: Preprocess) -> list[dict[str, Any]]:
    """What a dataset is made of: {"image": path or paths, "label": int, "index": int, "file": str, ...}, one an input.

    Raises:
        CohortError: if the instances of one input have several labels.
    """
    return [_item(cohort, index, case) for index, case in enumerate(inputs_of(cohort, preprocess))]


def _item(cohort: Cohort, index: int, case: Sequence[Instance]) -> dict[str, Any]:
    labels = {item.label for item in case}
    if len(labels) > 1:
        raise CohortError(
            f"the files of one case in {cohort.root} have {len(labels)} labels ({', '.join(sorted(labels))}): expected "
            "one; mend the table of labels"
        )
    item = {"label": cohort.label_index(case[0]), "index": index, "file": case[0].file}
    paths = list(dict.fromkeys(cohort.path(instance) for instance in case))
    if len(case) > 1:
        return {**item, "image": paths}
    return {**item, "image": paths[0], "frame": int(case[0].frame) if case[0].frame else None}


def dataset(
    cohort: Cohort,
    preprocess: Preprocess,
    *,
    augment: bool | Sequence[Any] = False,
    cache: bool = False,
    seed: int = 0,
    on_error: str = "stop",
    store: Path | None = None,
) -> Dataset:
    """A MONAI dataset of {"image": (C, H, W) or (C, D, H, W), "label": int, ...}.

    Args:
        augment: `augmentation()`, or MONAI transforms of one's own.
        cache: keep images in memory after their deterministic steps, up to CACHE_BYTES (thrice that for colours that
            `channels` averages later); others are read each time.
        on_error, store: as of `Read`.
    """
    read = Read(preprocess, on_error=on_error, store=store)
    items = items_of(cohort, preprocess)
    chosen = augmentation(volume=preprocess.volume) if augment is True else list(augment or ())
    steps = Compose([read, *([Augment(chosen, seed)] if chosen else []), Finish(preprocess)])
    if not cache:
        return Dataset(items, steps)
    kept_items = max(CACHE_BYTES // (4 * math.prod(preprocess.shape[1 if chosen else 0 :])), 1)
    return CacheDataset(
        items, steps, cache_num=min(kept_items, len(items)), num_workers=2, progress=False, copy_cache=False
    )


def loader(
    cohort: Cohort,
    preprocess: Preprocess,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    augment: bool | Sequence[Any] = False,
    cache: bool = False,
    workers: int = 0,
    on_error: str = "stop",
    store: Path | None = None,
) -> Batches:
    """Batches {"image": (B, C, H, W) or (B, C, D, H, W) float32, "label": (B,) int64}; the same for the same seed.

    Memory: CACHE_BYTES if there is a cache, and two batches for each worker.

    Args:
        workers: processes that read; they change how fast batches come, and nothing else.
        on_error: a damaged file stops the run ("stop"), or is left out and listed in `Batches.skipped` ("skip").
    """
    if on_error not in ON_ERROR:
        raise ConfigError(f"on_error is {on_error!r}: expected one of {', '.join(ON_ERROR)}")
    with own_errors():
        data = dataset(cohort, preprocess, augment=augment, cache=cache, seed=seed, on_error="skip", store=store)
    generator = torch.Generator().manual_seed(seed)
    batches = DataLoader(
        data, batch_size=batch_size, shuffle=shuffle, generator=generator, num_workers=workers, collate_fn=collate
    )
    return Batches(batches, stop=on_error == "stop")


def collate(items: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Images and labels of the items that could be read, stacked, and {file: error} of the others as "skipped"."""
    found = list(items)
    whole = [{"image": item["image"], "label": item["label"]} for item in found if item["image"] is not None]
    skipped = {item["file"]: item["fault"] for item in found if item["image"] is None}
    return {**(default_collate(whole) if whole else {}), "skipped": skipped}


@dataclass(frozen=True, slots=True)
class Batches:
    """Batches of a loader, as often as one asks; a damaged file is our own error, not MONAI's.

    Attributes:
        stop: whether a damaged file is an error; else it is left out of its batch.
        skipped: file -> reason, of all damaged files met so far.
    """

    loader: DataLoader[dict[str, torch.Tensor]]
    stop: bool = True
    skipped: dict[str, str] = field(default_factory=dict)
    epochs: Iterator[int] = field(default_factory=count, repr=False)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self._start(next(self.epochs))
        batches = iter(self.loader)
        try:
            while (batch := self._next(batches)) is not None:
                if batch:
                    yield batch
        finally:
            # Workers end now: once an error's traceback holds them, torch waits five seconds for each.
            del batches

    def _next(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        """The next batch without its damaged files; None at the end."""
        with one_thread(), own_errors():
            batch = next(batches, None)
        if batch is None:
            return None
        faults: dict[str, HsccError] = batch.pop("skipped")
        for file, error in faults.items():
            if self.stop or not isinstance(error, DicomError):
                del batches
                raise error
            self.skipped[file] = str(error)
        return batch

    def _start(self, epoch: int) -> None:
        transform = getattr(self.loader.dataset, "transform", None)
        for step in getattr(transform, "transforms", ()):
            if isinstance(step, Augment):
                step.epoch = epoch


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
