"""The torch network itself, on the CPU: the reference that the other runtimes are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import Bundle
from hscc_edge.errors import extra
from hscc_edge.model.load import load_network

with extra("workstation"):
    import torch


class EagerRuntime:
    """FP32 torch; the number of threads is set for the whole process."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._network = load_network(bundle)
        torch.set_num_threads(threads)

    @property
    def name(self) -> str:
        """torch and its version."""
        return f"torch {torch.__version__} eager"

    def infer(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, C, H, W) -> logits (B, n)."""
        with torch.inference_mode():
            return np.asarray(self._network(torch.from_numpy(images)).numpy())

    def close(self) -> None:
        """Nothing is held beyond memory."""
