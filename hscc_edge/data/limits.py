"""How much one DICOM file may ask for: what a decompression bomb, a lying header or a runaway nesting meets."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one file; what is over them is a `DicomError` before the memory is asked for.

    Attributes:
        file_bytes: the file as stored.
        inflated_bytes: a deflated data set (PS3.5 A.5) after inflation.
        samples: rows x columns x samples per pixel of one frame, as its header and as its codestream have it.
        frames: the number of frames of one file.
        decoded_bytes: one decoded frame in the cells that its header allocates.
    """

    file_bytes: int = 4096 * MIB
    inflated_bytes: int = 1024 * MIB
    samples: int = 1 << 28
    frames: int = 1 << 20
    decoded_bytes: int = 1024 * MIB


LIMITS = Limits()
