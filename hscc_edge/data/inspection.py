"""Every file of a cohort decoded once: digests, thumbnail and features of each picture, in several processes."""

from __future__ import annotations

import atexit
import hashlib
import io
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from hscc_edge.data.cohort import Cohort
from hscc_edge.data.contained import ContainedReader
from hscc_edge.data.dicom import FAULTS, Headers, Image, headers_of, read_dataset, read_frames, read_image
from hscc_edge.data.shortcut import Features, features
from hscc_edge.data.thumbnail import LENGTH, SIDE, VIEWS, signatures, thumbnail
from hscc_edge.errors import DicomError, StorageError

Progress = Callable[[int, str], None]
A = TypeVar("A")
B = TypeVar("B")
IN_FLIGHT = 4  # parts a process


class Spread(Protocol):
    """Run a function on each of many arguments, results in order."""

    def __call__(self, function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]: ...


@dataclass(frozen=True, slots=True)
class File:
    """What is asked of one process: a file, its expected digest and the frames wanted, "" for all as one."""

    path: Path
    digest: str
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """What was seen of one instance; the digest is over its pixels and their shape, "" if it could not be read."""

    digest: str = ""
    thumb: NDArray[np.uint8] | None = None
    signature: NDArray[np.float16] | None = None
    features: Features = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """A picture whose thumbnail stands in a row of `Seen.thumbs`, -1 for none."""

    digest: str
    altered: bool
    row: int
    features: Features


@dataclass(frozen=True, slots=True)
class Seen:
    """One item for each instance of the cohort, thumbnails (N, SIDE, SIDE) and signatures (N, VIEWS, LENGTH)."""

    items: list[Item]
    thumbs: NDArray[np.uint8]
    signatures: NDArray[np.float16]


@contextmanager
def workers(jobs: int) -> Iterator[Spread]:
    """Several processes that share work, with few parts in flight; with one job, this process."""
    if jobs <= 1:
        yield map  # type: ignore[misc]
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:

        def spread(function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]:
            waiting: deque[Future[B]] = deque()
            for argument in arguments:
                waiting.append(pool.submit(function, argument))
                if len(waiting) >= IN_FLIGHT * jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        try:
            yield spread
        except BrokenProcessPool as error:
            raise StorageError(
                "a process that reads pictures was killed, for want of memory perhaps: run this again with fewer --jobs"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def inspect_files(cohort: Cohort, spread: Spread, progress: Progress | None = None) -> Seen:
    """Look at every instance; a file of several is read once. Memory grows with the instances, about 6 kB each."""
    places: dict[str, list[int]] = {}
    for index, item in enumerate(cohort.instances):
        places.setdefault(item.file, []).append(index)
    count = len(cohort.instances)
    items = [Item("", False, -1, {})] * count
    thumbs = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    marks = np.zeros((count, VIEWS, LENGTH), dtype=np.float16)
    groups = list(places.values())
    for indices, (altered, pictures) in zip(groups, spread(inspect_file, _files(cohort, groups)), strict=True):
        for index, picture in zip(indices, pictures, strict=True):
            row = -1
            if picture.thumb is not None and picture.signature is not None:
                thumbs[index], marks[index], row = picture.thumb, picture.signature, index
            items[index] = Item(picture.digest, altered, row, picture.features)
        if progress is not None:
            progress(len(indices), "")
    return Seen(items, thumbs, marks)


def inspect_file(file: File) -> tuple[bool, list[Picture]]:
    """Whether the file is altered, and what its pictures show; a picture that cannot be read has no digest."""
    try:
        raw = file.path.read_bytes()
    except OSError:
        return False, [Picture()] * len(file.frames)
    altered = hashlib.sha256(raw).hexdigest() != file.digest
    return altered, [_picture(file.path, raw, frame) for frame in file.frames]


def pixel_digest(images: Iterable[Image]) -> str:
    """sha256 over the decoded pixels of each frame and their shape."""
    found = hashlib.sha256()
    for image in images:
        found.update(str(image.pixels.shape).encode() + image.pixels.tobytes())
    return found.hexdigest()


@cache
def _reader() -> ContainedReader:
    """This process's, ended with it."""
    reader = ContainedReader()
    atexit.register(reader.close)
    return reader


def _picture(path: Path, raw: bytes, frame: str) -> Picture:
    try:
        dataset = read_dataset(io.BytesIO(raw), pixels=True)
        shown, digest = _frame(path, raw, frame, headers_of(dataset, str(path)))
        thumb = thumbnail(shown.pixels)
        found = features(shown.pixels, dataset, len(raw))
    except (DicomError, *FAULTS):
        return Picture()
    return Picture(digest, thumb, None if thumb is None else signatures(thumb), found)


def _frame(path: Path, raw: bytes, frame: str, headers: Headers) -> tuple[Image, str]:
    """The frame, or the middle one of all, and the digest of what the instance is."""
    wanted = [int(frame)] if frame else range(headers.frames)
    middle = wanted[len(wanted) // 2]
    kept: list[Image] = []

    def each() -> Iterator[Image]:
        for index, image in zip(wanted, _images(path, raw, wanted, headers), strict=True):
            if index == middle:
                kept.append(image)
            yield image

    digest = pixel_digest(each())
    return kept[0], digest


def _images(path: Path, raw: bytes, wanted: Sequence[int], headers: Headers) -> Iterator[Image]:
    """Frames one at a time; compressed ones are decoded in a process of their own."""
    if UID(headers.transfer_syntax_uid).is_encapsulated:
        yield from (_reader().image(path, index if headers.frames > 1 else None) for index in wanted)
    elif len(wanted) == 1:
        yield read_image(io.BytesIO(raw), wanted[0] if headers.frames > 1 else None)
    else:
        yield from read_frames(io.BytesIO(raw))


def _files(cohort: Cohort, groups: Iterable[list[int]]) -> Iterator[File]:
    for indices in groups:
        first = cohort.instances[indices[0]]
        yield File(cohort.path(first), first.digest, tuple(cohort.instances[index].frame for index in indices))
