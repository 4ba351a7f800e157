"""How far two runtimes are apart on real images; runs on the device too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import ExportError
from hscc_edge.runtime import Runtime

LARGEST_RELATIVE_DIFFERENCE = 1e-3


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two runtimes are apart on real images.

    Attributes:
        top1_agreement: share of images with the same most probable class; an overflowed image never agrees.
        largest_logit_difference: largest absolute difference of any logit, over images that did not overflow.
        largest_logit: largest absolute logit of the reference, the scale of that difference.
        overflowed: images to which the other runtime gave an infinite or undefined logit.
    """

    images: int
    top1_agreement: float
    largest_logit_difference: float
    largest_logit: float
    emulated: bool = False
    overflowed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object."""
        return asdict(self)


def parity(reference: Runtime, other: Runtime, images: Iterable[NDArray[np.float32]], emulated: bool = False) -> Parity:
    """Compare two runtimes on images (C, H, W), one at a time.

    Raises:
        ExportError: if there is no image, or the reference gives a logit that is not finite.
    """
    pairs = ((reference.infer(image[None])[0], other.infer(image[None])[0]) for image in images)
    return compare_logits(pairs, reference.name, emulated)


def compare_logits(
    pairs: Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]], reference: str, emulated: bool = False
) -> Parity:
    """Compare the logits (n,) that a reference and another gave to each image.

    Args:
        reference: its name, for messages.

    Raises:
        ExportError: if there is no image, or the reference gives a logit that is not finite.
    """
    agreed, count, overflowed, difference, scale = 0, 0, 0, 0.0, 0.0
    for first, second in pairs:
        count += 1
        if not np.isfinite(first).all():
            raise ExportError(f"{reference} gives image {count} a logit that is not finite: train the network anew")
        scale = max(scale, float(np.abs(first).max()))
        if not np.isfinite(second).all():
            overflowed += 1
            continue
        agreed += int(first.argmax() == second.argmax())
        difference = max(difference, float(np.abs(first - second).max()))
    if count == 0:
        raise ExportError("there is no image to compare on: give a cohort with a test split")
    return Parity(count, agreed / count, difference, scale, emulated, overflowed)


def require_parity(found: Parity) -> None:
    """Refuse an FP32 graph that is not its network.

    Raises:
        ExportError: if an image overflows, a top-1 class differs, or a logit by more than 1e-3 of the largest.
    """
    limit = LARGEST_RELATIVE_DIFFERENCE * max(found.largest_logit, 1.0)
    if found.overflowed or found.top1_agreement < 1.0 or not found.largest_logit_difference <= limit:
        raise ExportError(
            f"the FP32 graph is not its network: top-1 agreement {found.top1_agreement:.4f}, largest logit difference "
            f"{found.largest_logit_difference:.3g}, {found.overflowed} images overflowed, expected 1, at most "
            f"{limit:.3g} and 0; nothing was written"
        )
