"""How long a runtime takes to its first answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from hscc_edge.bundle import Bundle
from hscc_edge.runtime import Runtime, open_runtime


@dataclass(frozen=True, slots=True)
class Started:
    """An open runtime and what it took to start it.

    Attributes:
        load_s: seconds from the call until the runtime was open, imports of its packages among them.
        first_inference_ms: of the first batch of one; kernels are chosen and memory is taken in it.
        warm_inference_ms: of the second.
    """

    runtime: Runtime
    load_s: float
    first_inference_ms: float
    warm_inference_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON object, without the runtime but with its name."""
        times = {"load_s": self.load_s, "first_inference_ms": self.first_inference_ms}
        return {"runtime": self.runtime.name, **times, "warm_inference_ms": self.warm_inference_ms}


def timed_open(
    bundle: Bundle, kind: str = "ort", *, precision: str = "fp32", threads: int = 1, unverified: bool = False
) -> Started:
    """Open a bundle's runtime as `open_runtime` does, and run an image of zeros through it twice.

    Raises:
        HsccError: as `open_runtime` and `infer` do; the runtime is closed then.
    """
    begun = time.perf_counter()
    runtime = open_runtime(bundle, kind, precision=precision, threads=threads, unverified=unverified)
    load_s = time.perf_counter() - begun
    image = np.zeros((1, *bundle.spec.input_shape), np.float32)
    try:
        first, second = (_milliseconds(lambda: runtime.infer(image)) for _ in range(2))
    except Exception:  # whatever a runtime raises: it is passed on
        runtime.close()
        raise
    return Started(runtime, load_s, first, second)


def _milliseconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - begun) / 1e6
