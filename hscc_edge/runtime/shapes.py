"""What every runtime refuses in the same words: other images than its model takes, and a call after `close`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import EngineError, InputError


def check_images(images: NDArray[np.float32], shape: Sequence[int], largest: int | None = None) -> None:
    """Refuse what is no batch of FP32 images of `shape`, or is of more than `largest`.

    Raises:
        InputError: if it is.
    """
    if images.shape[1:] != tuple(shape):
        raise InputError(f"images of shape {images.shape[1:]} were given: the model takes {tuple(shape)}")
    if images.dtype != np.float32 or len(images) == 0:
        raise InputError(f"{len(images)} images of {images.dtype} were given: expected one or more of float32")
    if largest is not None and len(images) > largest:
        raise InputError(f"{len(images)} images were given at once: the engine takes at most {largest}; give fewer")


def closed(name: str) -> EngineError:
    """The error of a runtime that was closed before."""
    return EngineError(f"the runtime {name} is closed: open it again")
