"""What `build` and `engines refit` do with a new engine: verify it on real images, and activate it if it passes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hscc_edge.cli.output import Advance, Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hscc_edge.bundle import Bundle
    from hscc_edge.runtime.engines import EngineFacts


def verify(
    output: Output, bundle: Bundle, facts: EngineFacts, cohort: Path | None, images: int, cache: Path
) -> tuple[EngineFacts, str]:
    """The facts after verification, and what became of the engine; it is activated if it passed.

    Raises:
        GateError: if it is not its graph.
    """
    from hscc_edge.export.verification import verify_engine
    from hscc_edge.runtime import PRECISIONS
    from hscc_edge.runtime.engines import activate
    from hscc_edge.runtime.nvidia import gpu_name

    if gpu_name() is None:
        return facts, "not verified: no GPU; not activated"
    if cohort is None:
        return facts, "not verified: no --cohort was given; not activated"
    with output.progress("verify") as advance:
        found = split_images(bundle, cohort, images, advance)
        verified = verify_engine(Path(facts.path), bundle.path(PRECISIONS[facts.precision]), found)
    activate(cache, bundle, verified)
    return verified, f"verified on {len(found)} images, and active"


def split_images(bundle: Bundle, place: Path, count: int, advance: Advance) -> list[NDArray[np.float32]]:
    """Up to `count` preprocessed inputs of a cohort's test split, spread evenly over it."""
    from hscc_edge.data.case import inputs_of, load
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.data.preprocess import parse_preprocess

    cohort, preprocess = read_cohort(place).select("test"), parse_preprocess(bundle.spec.preprocess)
    inputs = inputs_of(cohort, preprocess)
    step, found = max(len(inputs) // count, 1), []
    for items in inputs[::step][:count]:
        found.append(load(cohort, items, preprocess))
        advance()
    return found
