"""An engine against its ONNX graph on real images: what it must pass before it is activated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hscc_edge.errors import EngineError, GateError
from hscc_edge.export.parity import Parity, compare_logits
from hscc_edge.runtime import Runtime, infer_batches, infer_each
from hscc_edge.runtime.engines import EngineFacts, open_engine, write_facts

VERIFIED = "engine run on {} images: parity with its ONNX graph"


@dataclass(frozen=True, slots=True)
class Limits:
    """How far an engine may be from ONNX Runtime on the CPU, which runs the same graph.

    Attributes:
        top1_agreement: least share of images with the same most probable class.
        relative_difference: largest difference of a logit, over the largest logit.
    """

    top1_agreement: float
    relative_difference: float


# Chosen, not measured: FP16 and INT8 round in another order on a GPU, FP32 only sums in one.
LIMITS = {"fp32": Limits(1.0, 1e-3), "fp16": Limits(0.98, 0.05), "int8": Limits(0.97, 0.2)}


def verify_engine(path: Path, graph: Path, images: Sequence[NDArray[np.float32]]) -> EngineFacts:
    """Run an engine of the cache and its ONNX graph on images (C, H, W), and write what came out into its facts.

    Raises:
        EngineError: if there is no GPU, the engine does not run, or was built from another graph.
        GateError: if it is further from the graph than `LIMITS`; its facts stay unverified.
    """
    from hscc_edge.runtime.ort import OrtRuntime
    from hscc_edge.runtime.trt import TrtRuntime

    facts, plan = open_engine(path)
    if hashlib.sha256(graph.read_bytes()).hexdigest() != facts.onnx_sha256:
        raise EngineError(f"the engine {path} was built from another graph than {graph}: run hscc-edge build again")
    runtime = TrtRuntime(facts, plan)
    try:
        found = agreement(OrtRuntime(graph), runtime, images, (1, facts.max_batch))
    finally:
        runtime.close()
    require_agreement(found, facts)
    parity = {str(batch): one.to_json() for batch, one in found.items()}
    limits = asdict(LIMITS[facts.precision])
    verified = replace(
        facts, executed=True, parity={"batches": parity, "limits": limits}, note=VERIFIED.format(len(images))
    )
    write_facts(verified)
    return verified


def agreement(
    reference: Runtime, other: Runtime, images: Sequence[NDArray[np.float32]], batches: Sequence[int]
) -> dict[int, Parity]:
    """Parity of `other`, for each batch size that it is given the images in, with `reference` on single images."""
    truth = infer_each(reference, images)
    return {
        batch: compare_logits(zip(truth, infer_batches(other, images, batch), strict=True), reference.name)
        for batch in sorted(set(batches))
    }


def require_agreement(found: dict[int, Parity], facts: EngineFacts) -> None:
    """Refuse an engine that is not its graph.

    Raises:
        GateError: if a logit overflows, or `LIMITS` are not held, at any batch size.
    """
    limits = LIMITS[facts.precision]
    for batch, one in found.items():
        largest = limits.relative_difference * max(one.largest_logit, 1.0)
        held = one.top1_agreement >= limits.top1_agreement and one.largest_logit_difference <= largest
        if one.overflowed or not held:
            raise GateError(
                f"the {facts.precision} engine is not its graph at batch {batch}: top-1 agreement "
                f"{one.top1_agreement:.4f}, largest logit difference {one.largest_logit_difference:.3g}, "
                f"{one.overflowed} of {one.images} images overflowed, expected at least {limits.top1_agreement}, at "
                f"most {largest:.3g} and 0; it is not activated"
            )
