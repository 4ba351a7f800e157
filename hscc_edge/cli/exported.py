"""What `hscc-edge export` puts into a bundle: graphs in the precisions asked for, and how far each is from torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hscc_edge.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hscc_edge.bundle import Bundle
    from hscc_edge.cli.output import Advance
    from hscc_edge.data.cohort import Cohort
    from hscc_edge.export.calibrate import Images
    from hscc_edge.export.sensitivity import Judge, Verdict


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for: `images` prove each graph, `calibration` images of the train split give its ranges."""

    precisions: tuple[str, ...]
    images: int
    calibration: int
    method: str
    max_drop: float


def check_wanted(wanted: Wanted) -> None:
    """Raise InputError if an option is out of range or a name unknown."""
    from hscc_edge.export.calibrate import check_method
    from hscc_edge.runtime import check_precision

    for name in wanted.precisions:
        check_precision(name)
    for option, value in (("--images", wanted.images), ("--calibration", wanted.calibration)):
        if value < 1:
            raise InputError(f"{option} is {value}: expected 1 or more")
    check_method(wanted.method)
    if not 0 <= wanted.max_drop <= 100:
        raise InputError(f"--max-drop is {wanted.max_drop}: expected points of accuracy, from 0 to 100")


def graphs(
    bundle: Bundle, cohort: Cohort, wanted: Wanted, advance: Advance
) -> tuple[dict[str, bytes], dict[str, dict[str, Any]]]:
    """The bundle's ONNX files by name, and the report of each precision.

    Raises:
        ExportError: if the FP32 graph is not its network, or a precision cannot be written.
        GateError: if INT8 breaks the contract with half of the nodes left out.
    """
    from hscc_edge.data.preprocess import parse_preprocess
    from hscc_edge.export.balance import balance
    from hscc_edge.export.onnx import export_onnx
    from hscc_edge.export.parity import parity, require_parity
    from hscc_edge.export.precision import emulated_fp16
    from hscc_edge.export.reference import REFERENCE, reference_file, reference_inputs
    from hscc_edge.export.regions import by_position
    from hscc_edge.model.load import load_network
    from hscc_edge.runtime import PRECISIONS, infer_each
    from hscc_edge.runtime.eager import EagerRuntime
    from hscc_edge.runtime.ort import OrtRuntime

    eager, test = EagerRuntime(bundle, threads=2), cohort.select("test")
    full = export_onnx(load_network(bundle), bundle.spec.input_shape)
    advance(1, "fp32")
    calibration = chosen_of(bundle, cohort.select("train"), wanted.calibration) if len(wanted.precisions) > 1 else None
    source = full if calibration is None else balance(full, stream_of(bundle, calibration))
    files: dict[str, bytes] = {}
    report: dict[str, dict[str, Any]] = {}
    reference, logits = reference_inputs(parse_preprocess(bundle.spec.preprocess)), dict[str, Any]()
    with tempfile.TemporaryDirectory() as scratch:
        for name in wanted.precisions:
            content, facts = full, dict[str, Any]()
            if calibration is not None and name != "fp32":
                content, facts = _reduced(name, bundle, source, (cohort, calibration), wanted)
            path = Path(scratch) / f"{name}.onnx"
            content = content if name == "int8" else by_position(content)  # INT8 scales each region by channel
            path.write_bytes(content if name == "fp32" else emulated_fp16(content))
            images = stream_of(bundle, chosen_of(bundle, test, wanted.images))()
            runtime = OrtRuntime(path, threads=2)
            found = parity(eager, runtime, images, name != "fp32")
            if name == "fp32":
                require_parity(found)
            logits[name] = infer_each(runtime, reference)
            files[PRECISIONS[name]] = content
            report[name] = {**found.to_json(), "bytes": len(content), **facts}
            advance(1, name)
    files[REFERENCE] = reference_file(reference, logits)
    return files, report


def _reduced(
    name: str, bundle: Bundle, source: bytes, cohorts: tuple[Cohort, Cohort], wanted: Wanted
) -> tuple[bytes, dict[str, Any]]:
    """The graph in FP16 or INT8, and which nodes are kept out of it."""
    from hscc_edge.compress.contract import validation_of
    from hscc_edge.data.preprocess import parse_preprocess
    from hscc_edge.export.calibrate import spans
    from hscc_edge.export.precision import full_nodes, to_fp16
    from hscc_edge.export.sensitivity import to_int8
    from hscc_edge.model.head import parse_head

    cohort, calibration = cohorts
    images = stream_of(bundle, calibration)
    facts = {"calibration": {"images": len(calibration.instances), "digest": calibration.digest}}
    if name == "fp16":
        full = full_nodes(source, spans(source, images))
        return to_fp16(source, full), {**facts, "full": full}
    split, words = validation_of(cohort, calibration, parse_preprocess(bundle.spec.preprocess), seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        judge = judge_of(bundle, source, split, Path(scratch))
        head = parse_head(bundle.spec.head)
        found = to_int8(source, images, head, judge, method=wanted.method, max_drop=wanted.max_drop)
    contract = {"max_drop": wanted.max_drop, "split": words, "images": len(split.instances)}
    return found.content, {**facts, "contract": contract, **found.to_json()}


def judge_of(bundle: Bundle, reference: bytes, cohort: Cohort, scratch: Path) -> Judge:
    """Compares graphs with the FP32 graph on a cohort, case by case."""
    from hscc_edge.export.sensitivity import Verdict
    from hscc_edge.model.head import parse_head
    from hscc_edge.runtime.ort import OrtRuntime
    from hscc_edge.validate.compare import compare
    from hscc_edge.validate.predict import Case, predict

    def cases(content: bytes) -> list[Case]:
        path = scratch / "judged.onnx"
        path.write_bytes(content)
        return predict(bundle, OrtRuntime(path, threads=2), cohort)

    first, head = cases(reference), parse_head(bundle.spec.head)

    def judge(content: bytes) -> Verdict:
        found = compare(first, cases(content), head)
        return Verdict(drop=-100.0 * found.difference, kl=found.kl)

    return judge


def stream_of(bundle: Bundle, cohort: Cohort) -> Images:
    """Fresh passes over a cohort's preprocessed images."""
    from hscc_edge.data.case import stream
    from hscc_edge.data.preprocess import parse_preprocess

    preprocess = parse_preprocess(bundle.spec.preprocess)

    def images() -> Iterator[NDArray[np.float32]]:
        return (image for _, image in stream(cohort, preprocess))

    return images


def chosen_of(bundle: Bundle, cohort: Cohort, count: int) -> Cohort:
    """At most `count` inputs of every class alike, the same at each call."""
    from hscc_edge.data.case import firsts, whole
    from hscc_edge.data.preprocess import parse_preprocess
    from hscc_edge.data.subset import choose, distinct

    preprocess = parse_preprocess(bundle.spec.preprocess)
    pool = firsts(cohort, preprocess)
    return whole(choose(pool, min(count, distinct(pool)), seed=0), cohort, preprocess)
