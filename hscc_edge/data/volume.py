"""A series as one array with its place in the patient; `series.py` reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hscc_edge.data.dicom import Headers


@dataclass(frozen=True, slots=True)
class Volume:
    """A series as one array.

    Attributes:
        pixels: float32 (D, H, W), as `Image.pixels`; D grows along the normal (row x column), H and W as in the slices.
        spacing_mm: between slices, rows and columns.
        affine: (4, 4), index (d, h, w, 1) -> mm in DICOM's patient coordinates (LPS).
        headers: of the slice in the middle.
        sources: file and frame of each slice; None for one that was filled.
        duplicates: files that held a slice a second time; `apart`: frames set apart (localisers, other planes, other
            groups).
        tilt_deg: of the slices as they came.
        padding: bool, (D, H, W), true where nothing was imaged, as `Image.padding`; None where all was.
    """

    pixels: NDArray[np.float32]
    spacing_mm: tuple[float, float, float]
    affine: NDArray[np.float64]
    headers: Headers
    sources: tuple[tuple[Path, int] | None, ...] = field(repr=False)
    duplicates: int = 0
    apart: int = 0
    tilt_deg: float = 0.0
    padding: NDArray[np.bool_] | None = None

    @property
    def affine_ras(self) -> NDArray[np.float64]:
        """`affine` to RAS, the coordinates of NIfTI and MONAI."""
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ self.affine

    @property
    def filled(self) -> tuple[int, ...]:
        """The slices that no file holds."""
        return tuple(index for index, source in enumerate(self.sources) if source is None)
