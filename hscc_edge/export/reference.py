"""The reference set of a bundle: synthetic inputs with the logits that the FP32 graph gave to them at export.

A device infers them before it serves a bundle: a damaged engine, a wrong precision or a library that computes otherwise
shows there, and not first on a patient. The inputs are made from a seed, so that no patient's picture is in a bundle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hscc_edge.bundle import Bundle
from hscc_edge.data.dicom import Headers, Image
from hscc_edge.data.preprocess import Preprocess
from hscc_edge.data.volume import Volume
from hscc_edge.errors import BundleError, EngineError

REFERENCE = "models/reference.safetensors"
INPUTS, SIDE = 4, 128
# Of the largest logit, or of four times what was measured at export where that is more.
LEAST_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 2e-1}
HEADROOM = 4.0
Pixels = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reference:
    """Inputs (n, C, H, W) or (n, C, D, H, W), their logits (n, classes), and how far a precision may be off."""

    inputs: Pixels
    logits: Pixels
    tolerance: Mapping[str, float]


def reference_inputs(preprocess: Preprocess) -> Pixels:
    """The same inputs at each call: round things with noise, preprocessed like any image."""
    return np.stack([preprocess(_made(number, preprocess.volume)) for number in range(INPUTS)])


def reference_file(inputs: Pixels, logits: Mapping[str, Pixels]) -> bytes:
    """The file's bytes; `logits` by precision, "fp32" among them."""
    exact = logits["fp32"]
    scale = max(float(np.abs(exact).max()), 1.0)
    tolerance = {
        name: max(least * scale, HEADROOM * float(np.abs(logits[name] - exact).max()) if name in logits else 0.0)
        for name, least in LEAST_TOLERANCE.items()
    }
    tensors = {"inputs": np.ascontiguousarray(inputs), "logits": np.ascontiguousarray(exact, dtype=np.float32)}
    return save(tensors, {"tolerance": json.dumps(tolerance)})


def read_reference(bundle: Bundle) -> Reference:
    """A bundle's reference set.

    Raises:
        BundleError: if it has none, or one that does not fit it.
    """
    if REFERENCE not in bundle.files:
        raise BundleError(f"the bundle {bundle.root} has no reference set for a self-test: run hscc-edge export again")
    try:
        with safe_open(bundle.path(REFERENCE), framework="numpy") as file:
            found = Reference(
                file.get_tensor("inputs"), file.get_tensor("logits"), json.loads(file.metadata()["tolerance"])
            )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"the reference set of {bundle.root} cannot be read: run hscc-edge export again") from error
    if found.inputs.shape[1:] != bundle.spec.input_shape or len(found.inputs) != len(found.logits):
        raise BundleError(
            f"the reference set of {bundle.root} has inputs of shape {found.inputs.shape[1:]}, the bundle takes "
            f"{bundle.spec.input_shape}: run hscc-edge export again"
        )
    return found


def self_test(reference: Reference, infer: Callable[[Pixels], Pixels], precision: str) -> float:
    """Infer the reference set, one input at a time; returns the largest difference of a logit.

    Raises:
        EngineError: if a logit is off by more than the precision may be, or not finite.
    """
    logits = np.concatenate([infer(image[None]) for image in reference.inputs])
    if logits.shape != reference.logits.shape:
        raise EngineError(
            f"the self-test failed: {logits.shape[1:]} logits an image, expected {reference.logits.shape[1:]}; export "
            "the bundle again"
        )
    difference, limit = float(np.abs(logits - reference.logits).max()), float(reference.tolerance[precision])
    if not difference <= limit:
        raise EngineError(
            f"the self-test failed: a logit of the reference set is off by {difference:.3g}, {limit:.3g} is allowed in "
            f"{precision}; build the engine anew, or export the bundle again"
        )
    return difference


def _made(number: int, volume: bool) -> Image | Volume:
    """A head of a sort with three spots, as an MR image or a stack of such."""
    random = np.random.default_rng(number)
    sides = (SIDE // 4, SIDE, SIDE) if volume else (SIDE, SIDE)
    grid = np.meshgrid(*(np.linspace(-1, 1, side) for side in sides), indexing="ij")
    pixels = 300.0 * (sum(axis**2 for axis in grid) < 0.7)
    for _ in range(3):
        centre, width = random.uniform(-0.5, 0.5, len(sides)), random.uniform(0.05, 0.3)
        distance = sum((axis - middle) ** 2 for axis, middle in zip(grid, centre, strict=True))
        pixels = pixels + random.uniform(100, 600) * np.exp(-distance / width**2)
    noisy = np.asarray(pixels + random.normal(0, 10, sides), np.float32)
    if not volume:
        return Image(noisy, _headers())
    affine = np.array([[0.0, 1, 0, 0], [0, 0, 1, 0], [4, 0, 0, 0], [0, 0, 0, 1]])
    return Volume(noisy, (4.0, 1.0, 1.0), affine, _headers(), tuple([None] * sides[0]))


def _headers() -> Headers:
    return Headers(
        sop_class_uid="", sop_instance_uid="", series_uid="", study_uid="", patient_id="", modality="MR", body_part="",
        series_description="", photometric="MONOCHROME2", transfer_syntax_uid="", rows=SIDE, columns=SIDE, frames=1,
        instance_number=None, window=None,
    )  # fmt: skip
