"""`hscc-edge export`: ONNX graphs into a bundle, each compared with its torch network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hscc_edge.bundle import Bundle


def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle to add ONNX files to.")],
    cohort: Annotated[Path | None, typer.Option(help="Cohort whose test images prove the graphs.")] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16, or both.")] = "fp32,fp16",
    images: Annotated[int, typer.Option(help="Images to compare on.")] = 64,
    dropin: Annotated[
        Path | None, typer.Option(help="Of an imported bundle: new ONNX file to use in place of the original model.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write ONNX graphs into the bundle, each compared with the torch network on real images; FP32 always among them.

    Example: hscc-edge export small --cohort cohort --precision fp32,fp16
    Example: hscc-edge export small --dropin small.onnx
    """
    from hscc_edge.bundle import read_bundle
    from hscc_edge.runtime import check_precision

    output, wanted = Output(as_json), list(dict.fromkeys(name.strip() for name in precision.split(",")))
    for name in wanted:
        check_precision(name)
    wanted = ["fp32", *(name for name in wanted if name != "fp32")]
    if images < 1:
        raise InputError(f"--images is {images}: expected 1 or more")
    if cohort is None and dropin is None:
        raise InputError("nothing to export was named: give --cohort for the bundle's own graphs, or --dropin, or both")
    found = read_bundle(bundle)
    result: dict[str, Any] = {"bundle": str(bundle)}
    if dropin is not None:
        result["dropin"] = _dropin(output, found, dropin)
    if cohort is not None:
        result |= _into_bundle(output, found, cohort, wanted, images)
    output.result(result)


def _dropin(output: Output, bundle: Bundle, path: Path) -> dict[str, Any]:
    from hscc_edge import durable
    from hscc_edge.export.dropin import bundle_dropin

    if path.exists():
        raise InputError(f"{path} stands there already: give --dropin a new name")
    content, inputs, outputs = bundle_dropin(bundle)
    durable.write_bytes(path, content)
    facts = {"file": str(path), "bytes": len(content), "inputs": inputs, "outputs": outputs}
    output.say(f"{path}: {len(content):,} bytes; takes {', '.join(inputs)} and gives {', '.join(outputs)} as before")
    return facts


def _into_bundle(output: Output, found: Bundle, cohort: Path, wanted: list[str], images: int) -> dict[str, Any]:
    from hscc_edge.bundle import add_files
    from hscc_edge.data.cohort import read_cohort

    with output.progress("export", 1 + len(wanted)) as advance:
        files, report = _graphs(found, read_cohort(cohort).select("test"), wanted, images, advance)
    files["reports/export.json"] = (json.dumps(report, indent=2, allow_nan=False) + "\n").encode()
    written = add_files(found, files)
    rows = [
        (name, f"{entry['bytes']:,}", f"{entry['top1_agreement']:.4f}", f"{entry['largest_logit_difference']:.2e}",
         entry["overflowed"], "emulated" if entry["emulated"] else "ONNX Runtime CPU")
        for name, entry in report.items()
    ]  # fmt: skip
    output.table(
        f"{found.root} against torch on {next(iter(report.values()))['images']} images",
        ("precision", "bytes", "top-1 agreement", "largest logit difference", "overflowed", "measured by"),
        rows,
    )
    return {"digest": written.digest, "precision": report}


def _graphs(
    bundle: Bundle, cohort: Any, wanted: list[str], images: int, advance: Any
) -> tuple[dict[str, bytes], dict[str, Any]]:
    import tempfile

    from hscc_edge.export import onnx, parity, precision
    from hscc_edge.model.load import load_network
    from hscc_edge.runtime import PRECISIONS
    from hscc_edge.runtime.eager import EagerRuntime
    from hscc_edge.runtime.ort import OrtRuntime

    eager = EagerRuntime(bundle, threads=2)
    full = onnx.export_onnx(load_network(bundle), bundle.spec.input_shape)
    advance()
    files, report = {PRECISIONS["fp32"]: full}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in wanted:
            path = Path(scratch) / f"{name}.onnx"
            path.write_bytes(full if name == "fp32" else precision.emulated_fp16(full))
            found = parity.parity(eager, OrtRuntime(path, threads=2), _images(bundle, cohort, images), name == "fp16")
            if name == "fp32":
                parity.require_parity(found)
            else:
                files[PRECISIONS[name]] = precision.to_fp16(full)
            report[name] = {**found.to_json(), "bytes": len(files[PRECISIONS[name]])}
            advance()
    return files, report


def _images(bundle: Bundle, cohort: Any, count: int) -> Iterator[NDArray[np.float32]]:
    from hscc_edge.data.case import firsts, stream, whole
    from hscc_edge.data.preprocess import parse_preprocess
    from hscc_edge.data.subset import choose

    preprocess = parse_preprocess(bundle.spec.preprocess)
    pool = firsts(cohort, preprocess)
    chosen = whole(choose(pool, min(count, len(pool.instances)), seed=0), cohort, preprocess)
    return (image for _, image in stream(chosen, preprocess))
