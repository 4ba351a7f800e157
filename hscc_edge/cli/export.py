"""`hscc-edge export`: ONNX graphs into a bundle, each compared with its torch network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.bundle import Bundle
    from hscc_edge.cli.exported import Wanted


def export(
    bundle: Annotated[Path, typer.Argument(help="Bundle to add ONNX files to.")],
    cohort: Annotated[Path | None, typer.Option(help="Cohort whose test images prove the graphs.")] = None,
    precision: Annotated[str, typer.Option(help="Some of fp32, fp16 and int8.")] = "fp32,fp16",
    images: Annotated[int, typer.Option(help="Images to compare on.")] = 64,
    calibration: Annotated[int, typer.Option(help="Train images that give the ranges of FP16 and INT8.")] = 128,
    range_: Annotated[str, typer.Option("--range", help="percentile, entropy, mse or min-max.")] = "percentile",
    max_drop: Annotated[float, typer.Option(help="Points of accuracy that INT8 may lose on the val split.")] = 0.5,
    dropin: Annotated[
        Path | None, typer.Option(help="Of an imported bundle: new ONNX file to use in place of the original model.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write ONNX graphs into the bundle, each compared with the torch network on real images; FP32 always among them.

    A node whose values or weights do not fit FP16 stays in FP32. INT8 leaves in FP16 what it must to keep --max-drop.

    Example: hscc-edge export small --cohort cohort --precision fp32,fp16
    Example: hscc-edge export small --cohort cohort --precision int8 --max-drop 0.5 --range mse
    Example: hscc-edge export small --dropin small.onnx
    """
    from hscc_edge.bundle import read_bundle
    from hscc_edge.cli.exported import Wanted, check_wanted

    output = Output(as_json)
    names = tuple(dict.fromkeys(("fp32", *(name.strip() for name in precision.split(",")))))
    wanted = Wanted(names, images, calibration, range_, max_drop)
    check_wanted(wanted)
    if cohort is None and dropin is None:
        raise InputError("nothing to export was named: give --cohort for the bundle's own graphs, or --dropin, or both")
    found = read_bundle(bundle)
    result: dict[str, Any] = {"bundle": str(bundle)}
    if dropin is not None:
        result["dropin"] = _dropin(output, found, dropin)
    if cohort is not None:
        result |= _into_bundle(output, found, cohort, wanted)
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


def _into_bundle(output: Output, found: Bundle, cohort: Path, wanted: Wanted) -> dict[str, Any]:
    from hscc_edge.bundle import add_files
    from hscc_edge.cli.exported import graphs
    from hscc_edge.data.cohort import read_cohort

    with output.progress("export", 1 + len(wanted.precisions)) as advance:
        files, report = graphs(found, read_cohort(cohort), wanted, advance)
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
    for name, entry in report.items():
        _say_kept(output, name, entry)
    return {"digest": written.digest, "precision": report}


def _say_kept(output: Output, name: str, entry: dict[str, Any]) -> None:
    """Which nodes have not the precision that was asked for, and why."""
    if name == "int8":
        contract = entry["contract"]
        output.say(
            f"int8: {entry['quantised']} of {entry['nodes']} nodes that multiply; {entry['drop']:.2f} points lost and "
            f"KL {entry['kl']:.4f} on {contract['images']} images of {contract['split']}"
        )
    for kind, words in (("left", "stays in FP16"), ("full", "stays in FP32")):
        for node, reason in entry.get(kind, {}).items():
            output.say(f"{name}: {node} {words}: {reason}")
