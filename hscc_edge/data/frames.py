"""Frames of a multi-frame object: how many, and each one's attributes as a single-frame file would hold them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from pydicom import Dataset
from pydicom.tag import BaseTag, Tag

from hscc_edge.data.limits import LIMITS, Limits
from hscc_edge.errors import DicomError

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
SHARED, PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
LEFT_OUT = {Tag(keyword) for keyword in (*PIXELS, SHARED, PER_FRAME, "NumberOfFrames")}
# Single-frame objects hold these as sequences, too, or have no place for what is in them.
KEPT = {
    Tag(keyword)
    for keyword in ("ReferencedImageSequence", "RealWorldValueMappingSequence", "ConversionSourceAttributesSequence")
}
# What says the same in a single-frame object, where that has another name.
SAME = {
    "FrameType": "ImageType",
    "FrameAcquisitionDateTime": "AcquisitionDateTime",
    "FrameLaterality": "ImageLaterality",
    "EffectiveEchoTime": "EchoTime",
}


def frame_count(dataset: Dataset, limits: Limits = LIMITS) -> int:
    """How many frames a data set claims; 1 where it does not say (PS3.3 C.7.6.6).

    Raises:
        DicomError: if the number is malformed or outside 1..`limits.frames`.
    """
    try:
        count = int(dataset.get("NumberOfFrames") or 1)
    except (TypeError, ValueError, OverflowError) as error:
        raise DicomError("the number of frames is malformed: expected an integer; fetch the file again") from error
    if not 1 <= count <= limits.frames:
        raise DicomError(f"the file claims {count} frames: expected 1 to {limits.frames}; leave it out")
    return count


def frame_dataset(dataset: Dataset, index: int) -> Dataset:
    """Frame `index` (from 0) as a single-frame data set: attributes of its functional groups at the top, no pixels.

    The shared groups are laid over the top level, the frame's own over both (PS3.3 C.7.6.16); groups of several items,
    and those that single-frame objects have as well, stay sequences. InstanceNumber becomes the frame's number, from 1.
    Elements are shared with `dataset`, not copied: alter neither. Cost grows with the elements, not with the pixels; a
    data set without functional groups gives its own attributes.

    Raises:
        DicomError: if there is no such frame, or its functional groups are missing or malformed.
    """
    count = frame_count(dataset)
    if not 0 <= index < count:
        raise DicomError(f"there is no frame {index}: the file has {count}, counted from 0; choose one of them")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _flattened(dataset, index, count)
        except (ArithmeticError, AttributeError, EOFError, KeyError, LookupError, NotImplementedError, RuntimeError,
                TypeError, ValueError) as error:  # fmt: skip
            raise DicomError(
                f"the functional groups of frame {index} are malformed ({type(error).__name__}): fetch the file again"
            ) from error


def _flattened(dataset: Dataset, index: int, count: int) -> Dataset:
    elements: dict[BaseTag, Any] = {tag: found for tag, found in dataset.items() if tag not in LEFT_OUT}
    groups = list(_groups(dataset, index))
    for group in groups:
        for tag, found in group.items():
            elements.update(_top_level(group, tag, found))
    frame = Dataset(elements)
    implicit, little = dataset.original_encoding
    frame.set_original_encoding(implicit, little, dataset.original_character_set)
    if hasattr(dataset, "file_meta"):
        frame.file_meta = dataset.file_meta
    if groups:
        for there, here in SAME.items():
            if there in frame:
                setattr(frame, here, frame[there].value)
    if count > 1:
        frame.InstanceNumber = index + 1
    return frame


def _groups(dataset: Dataset, index: int) -> Iterator[Dataset]:
    """The items with the functional groups of a frame, the shared ones first."""
    yield from list(dataset.get(SHARED) or ())[:1]
    if PER_FRAME in dataset:
        own = dataset[PER_FRAME].value or ()
        if index >= len(own):
            raise DicomError(
                f"the file claims {frame_count(dataset)} frames and describes {len(own)}: expected as many; "
                "fetch it again"
            )
        yield own[index]


def _top_level(group: Dataset, tag: BaseTag, found: Any) -> dict[BaseTag, Any]:
    if found.VR != "SQ" or tag in KEPT:
        return {tag: found}
    items = group[tag].value
    return dict(items[0].items()) if len(items) == 1 else {tag: group[tag]}
