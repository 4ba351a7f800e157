"""The one way from files to what a network takes: in training, calibration, validation and serving."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from hscc_edge.data.cohort import Cohort, Instance
from hscc_edge.data.dicom import Image, read_image
from hscc_edge.data.preprocess import Preprocess
from hscc_edge.data.series import choose, read_volume
from hscc_edge.data.slices import slices_of
from hscc_edge.data.steps import Pixels
from hscc_edge.data.volume import Volume
from hscc_edge.errors import DicomError


def read_input(paths: Sequence[Path], preprocess: Preprocess, *, frame: int | None = None) -> Image | Volume:
    """The image of one file, or where the steps are for volumes, the volume of a case's files.

    Args:
        frame: of a file of several.

    Raises:
        DicomError: as `read_image`, `choose` and `read_volume` do.
    """
    if not preprocess.volume:
        if len(paths) != 1:
            raise DicomError(f"an image was asked for and {len(paths)} files given: give one")
        return read_image(paths[0], frame)
    if preprocess.series is not None:
        chosen = choose((item for path in paths for item in slices_of(path)), preprocess.series)
        paths = list(dict.fromkeys(item.source for item in chosen))
    return read_volume(paths, preprocess.rules)


def inputs_of(cohort: Cohort, preprocess: Preprocess) -> list[tuple[Instance, ...]]:
    """The instances of every input: one each, or for volumes those of a series, or of a study that one is chosen of."""
    if not preprocess.volume:
        return [(item,) for item in cohort.instances]
    return list(cohort.cases("study" if preprocess.series else "series").values())


def firsts(cohort: Cohort, preprocess: Preprocess) -> Cohort:
    """The first instance of every input: what a choice of inputs chooses from."""
    return dataclasses.replace(cohort, instances=tuple(items[0] for items in inputs_of(cohort, preprocess)))


def whole(chosen: Cohort, cohort: Cohort, preprocess: Preprocess) -> Cohort:
    """All instances of the inputs whose first instances are in `chosen`, in its order."""
    found = {(items[0].file, items[0].frame): items for items in inputs_of(cohort, preprocess)}
    inputs = (found[item.file, item.frame] for item in chosen.instances)
    return dataclasses.replace(cohort, instances=tuple(item for items in inputs for item in items))


def read(cohort: Cohort, items: Sequence[Instance], preprocess: Preprocess) -> Image | Volume:
    """One input of a cohort before its preprocessing; raises as `read_input` does."""
    paths = list(dict.fromkeys(cohort.path(item) for item in items))
    frame = int(items[0].frame) if len(items) == 1 and items[0].frame else None
    return read_input(paths, preprocess, frame=frame)


def load(cohort: Cohort, items: Sequence[Instance], preprocess: Preprocess) -> Pixels:
    """One input, preprocessed: (C, H, W) or (C, D, H, W); raises as `read_input` does."""
    return preprocess(read(cohort, items, preprocess))


def stream(cohort: Cohort, preprocess: Preprocess) -> Iterator[tuple[Instance, Pixels]]:
    """Each input with the first of its instances, one at a time."""
    for items in inputs_of(cohort, preprocess):
        yield items[0], load(cohort, items, preprocess)
