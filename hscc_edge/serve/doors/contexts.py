"""Which SOP classes and transfer syntaxes are accepted, as UIDs, from what the configuration names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pydicom.uid
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)  # fmt: skip

# What a sender's offers are answered by, most wished for first. Deflated Explicit VR is not among them: pydicom
# inflates it without a limit, so that 1 MB can claim 1 GB.
SYNTAXES: tuple[str, ...] = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian,
    JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless,
    JPEG2000Lossless, JPEG2000, HTJ2KLossless, HTJ2K, RLELossless,
)  # fmt: skip
STORAGE_ROOTS = ("1.2.840.10008.5.1.4.1.1.", "1.2.840.10008.5.1.4.34.7", "1.2.840.10008.5.1.4.34.10")
OTHER_SERVICES = ("FIND", "MOVE", "GET", "Creation", "Query")  # some UIDs between those of storage are of these
DICOM_ROOT = "1.2.840.10008."


def uid_of(name: str) -> str | None:
    """The UID that a UID or its keyword (PS3.6 tables A-1) stands for; None if it is neither."""
    if re.fullmatch(r"[0-9]+(\.[0-9]+)+", name) and len(name) <= 64:
        return name
    found = getattr(pydicom.uid, name, None)
    return str(found) if isinstance(found, pydicom.uid.UID) else None


def syntaxes(names: Sequence[str]) -> tuple[str, ...]:
    """Transfer syntaxes to accept, most wished for first: those named, or all that can be kept."""
    named = {uid_of(name) for name in names}
    return tuple(uid for uid in SYNTAXES if uid in named) if names else SYNTAXES


def takes_class(names: Sequence[str], uid: str) -> bool:
    """Whether instances of a SOP class are kept: of those named, or of every storage class, private ones too.

    Private means not under the root of DICOM's own UIDs. Of these, storage classes (PS3.4 B.5 and GG.3) are told by
    their roots, so that those of a later edition are kept as well.
    """
    if names:
        return uid in {uid_of(name) for name in names}
    if not uid.startswith(DICOM_ROOT):
        return True
    return uid.startswith(STORAGE_ROOTS) and not pydicom.uid.UID(uid).name.endswith(OTHER_SERVICES)
