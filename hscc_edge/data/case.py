"""The one way from files to what a preprocessing takes: in training, calibration, validation and serving."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hscc_edge.data.dicom import Image, read_image
from hscc_edge.data.preprocess import Preprocess
from hscc_edge.data.series import RULES, SeriesRules, VolumeRules, choose, read_volume
from hscc_edge.data.slices import slices_of
from hscc_edge.data.volume import Volume
from hscc_edge.errors import DicomError


def read_input(
    paths: Sequence[Path],
    preprocess: Preprocess,
    *,
    frame: int | None = None,
    series: SeriesRules | None = None,
    rules: VolumeRules = RULES,
) -> Image | Volume:
    """The image of one file, or where the steps are for volumes, the volume of a case's files.

    Args:
        frame: of a file of several.
        series: which series is read, where the files are of several; `rules`: how it becomes a volume.

    Raises:
        DicomError: as `read_image`, `choose` and `read_volume` do.
    """
    if not preprocess.volume:
        if len(paths) != 1:
            raise DicomError(f"an image was asked for and {len(paths)} files given: give one")
        return read_image(paths[0], frame)
    if series is not None:
        chosen = choose((item for path in paths for item in slices_of(path)), series)
        paths = list(dict.fromkeys(item.source for item in chosen))
    return read_volume(paths, rules)
