"""The torch network itself, on the CPU: the reference that the other runtimes are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.errors import EngineError, extra
from hscc_edge.model.load import load_network
from hscc_edge.runtime.shapes import check_images, closed

with extra("workstation"):
    import torch
    from torch import nn


class EagerRuntime:
    """FP32 torch; the number of threads is set for the whole process.

    Thread-safe: the network is only read, and batches run side by side.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._network: nn.Module | None = load_network(bundle)
        self._shape = bundle.spec.input_shape
        torch.set_num_threads(threads)

    @property
    def name(self) -> str:
        """torch and its version."""
        return f"torch {torch.__version__} eager"

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) -> logits (B, n).

        Raises:
            InputError: if an image has another shape than the bundle's.
            EngineError: if torch fails, or the runtime is closed.
        """
        network = self._network
        if network is None:
            raise closed(self.name)
        check_images(images, self._shape)
        try:
            with torch.inference_mode():
                return np.asarray(network(torch.from_numpy(np.ascontiguousarray(images))).numpy())
        except RuntimeError as error:
            raise EngineError(f"torch could not run a batch of {len(images)}: free memory, or give fewer") from error

    def close(self) -> None:
        """Let go of the network; a second call does nothing."""
        self._network = None
