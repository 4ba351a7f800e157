"""Graph forms of layers with regions on a GPU: built, inspected, verified and timed as engines, and by ONNX Runtime.

    python benchmarks/gpu_engines.py --out docs [--seconds 5] [--precisions fp32 fp16]

The networks are those of graph_forms.py, in FP32, FP16 and INT8 as `hscc-edge export` makes them from 16 made-up
images. TensorRT builds an engine of each on this machine; it must hold its precision by its own inspector and agree
with ONNX Runtime on the CPU. `infer` is timed as the daemon calls it: from host memory to host memory. What does not
build, run or agree says why and is not timed. Ends in OUT/gpu-engines.json and .md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from graph_forms import FORMS, SHAPE, write

from hscc_edge import durable
from hscc_edge.errors import HsccError
from hscc_edge.export.balance import balance
from hscc_edge.export.calibrate import spans, thresholds
from hscc_edge.export.engine import build_engine
from hscc_edge.export.precision import full_nodes, to_fp16
from hscc_edge.export.quantise import quantisable
from hscc_edge.export.sensitivity import mixed
from hscc_edge.export.verification import LIMITS, agreement, verify_engine
from hscc_edge.runtime import Runtime
from hscc_edge.runtime.engines import open_engine
from hscc_edge.runtime.nvidia import gpu_name, load_tensorrt
from hscc_edge.runtime.ort import OrtRuntime
from hscc_edge.runtime.trt import TrtRuntime
from hscc_edge.validate.latency import compare_times, sample
from hscc_edge.validate.machine import machine_facts

BATCHES = (1, 8, 64)
PRECISIONS = ("fp32", "fp16", "int8")
IMAGES = 16
Opened = tuple[Runtime, dict[str, Any]]


def main() -> None:
    """Every form in every precision, by each runtime; then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="directory for gpu-engines.json and .md")
    parser.add_argument("--seconds", type=float, default=5.0, help="for all forms at one batch size")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    arguments = parser.parse_args()
    if gpu_name() is None:
        raise SystemExit("CUDA finds no GPU: run this on a machine with an NVIDIA GPU")
    images = np.random.default_rng(0).standard_normal((IMAGES, *SHAPE)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        paths = graphs(Path(folder), images, arguments.precisions)
        rows = [
            row
            for name, opener in {"trt": engine, "ort-cuda": on_cuda}.items()
            for precision in arguments.precisions
            for row in measured(name, opener, precision, paths, images, arguments.seconds)
        ]
    table = {
        **machine_facts(),
        "device": gpu_name(),
        "tensorrt": tensorrt(),
        "seconds": arguments.seconds,
        "rows": rows,
    }
    durable.write_json(arguments.out / "gpu-engines.json", table)
    durable.write_text(arguments.out / "gpu-engines.md", markdown(table))


def graphs(folder: Path, images: Any, precisions: Collection[str]) -> dict[tuple[str, str], Path]:
    """ONNX files by form and precision."""
    paths = {}
    for index, (form, (structure, rewritten)) in enumerate(FORMS.items()):
        for precision in PRECISIONS:
            paths[form, precision] = folder / f"{index}-{precision}.onnx"
        write(paths[form, "fp32"], structure, rewritten)
        full = balance(paths[form, "fp32"].read_bytes(), lambda: iter(images))
        found = spans(full, lambda: iter(images))
        if "fp16" in precisions:
            paths[form, "fp16"].write_bytes(to_fp16(full, full_nodes(full, found)))
        if "int8" in precisions:
            origins = quantisable(full)
            limits = thresholds(full, lambda: iter(images), found, "percentile", set(origins.values()))
            paths[form, "int8"].write_bytes(mixed(full, lambda: iter(images), found, limits, origins)[0])
    return paths


def engine(path: Path, precision: str, images: Any) -> Opened:
    """An engine that was built here and passed, and what is known of it."""
    cache = path.parent / "engines"
    facts = build_engine(path.read_bytes(), precision=precision, shape=SHAPE, max_batch=max(BATCHES), cache=cache)
    verified = verify_engine(Path(facts.path), path, list(images))
    keys = ("bytes", "layers", "half_layers", "quantised_layers", "reformats", "full_layers", "inspected", "seconds")
    known = {key: value for key, value in verified.to_json().items() if key in keys}
    assert verified.parity is not None
    return TrtRuntime(*open_engine(Path(facts.path))), known | largest(verified.parity["batches"])


def on_cuda(path: Path, precision: str, images: Any) -> Opened:
    """ONNX Runtime's CUDA provider against its CPU provider, which computes FP16 in FP32."""
    runtime = OrtRuntime(path, provider="cuda")
    found = agreement(OrtRuntime(path), runtime, list(images), (1, IMAGES))
    return runtime, largest({str(batch): one.to_json() for batch, one in found.items()})


def largest(batches: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The worst agreement over batch sizes."""
    return {
        "top1_agreement": min(one["top1_agreement"] for one in batches.values()),
        "relative_difference": max(
            one["largest_logit_difference"] / max(one["largest_logit"], 1.0) for one in batches.values()
        ),
    }


def measured(
    name: str,
    opener: Callable[[Path, str, Any], Opened],
    precision: str,
    paths: Mapping[tuple[str, str], Path],
    images: Any,
    seconds: float,
) -> list[dict[str, Any]]:
    """One row a form, all of them in turn at each batch size."""
    rows, runtimes = [], {}
    for form in FORMS:
        row: dict[str, Any] = {"runtime": name, "precision": precision, "form": form}
        try:
            runtimes[form], facts = opener(paths[form, precision], precision, images)
            row |= facts
        except HsccError as error:
            row["not_run"] = str(error)
        rows.append(row)
        print(row, flush=True)
    for batch in BATCHES:
        times = sample(list(runtimes.values()), [np.resize(images, (batch, *SHAPE))], seconds) if runtimes else ()
        found = dict(zip(runtimes, times, strict=True))
        for row in rows:
            if row["form"] in found:
                row.setdefault("ms", {})[str(batch)] = float(np.median(found[row["form"]]))
            if row["form"] in found and "dense" in found:
                row.setdefault("speedup", {})[str(batch)] = faster(found["dense"], found[row["form"]])
    for runtime in runtimes.values():
        runtime.close()
    return rows


def faster(dense: Any, own: Any) -> dict[str, float]:
    """The ratio of medians with its 95 % interval."""
    race = compare_times(dense, own)
    return {"value": race.speedup, "low": race.low, "high": race.high}


def tensorrt() -> str:
    """Its name and version, or why there is none."""
    try:
        found = load_tensorrt()
    except HsccError as error:
        return str(error)
    return f"{found.__name__} {found.__version__}"


def markdown(table: Mapping[str, Any]) -> str:
    """The table, and what was not run and why."""
    versions = ", ".join(f"{name} {value}" for name, value in table["versions"].items())
    reasons: dict[str, list[str]] = {}
    for row in table["rows"]:
        if "not_run" in row:
            reasons.setdefault(row["not_run"], []).append(f"{row['runtime']} {row['precision']} {row['form']}")
    limits = ", ".join(f"{name} {one.relative_difference:g}" for name, one in LIMITS.items())
    return "\n".join([
        "# Graph forms on a GPU: engines and ONNX Runtime's CUDA provider", "",
        f"`benchmarks/gpu_engines.py`; {table['device']}; {table['tensorrt']}; {table['machine']}; {table['date']}; "
        f"{versions}.", "",
        "AlexNet, 3 x 224 x 224, random weights, the networks of [graph-forms](graph-forms.md) at a sixth of the",
        "FLOPs. `infer` from host memory to host memory, medians of all forms of a precision in turn, for",
        f"{table['seconds']:g} s a batch size; speed-up over the dense network of the same runtime and precision, with",
        "its 95 % interval.",
        f"Difference: of a logit from ONNX Runtime's on the CPU, over the largest logit (limits: {limits}).", "",
        "| runtime | precision | network | difference | layers, in that precision, reformats | MB | build, s | "
        + " | ".join(f"batch {batch}: ms | speed-up (95 %)" for batch in BATCHES) + " |",
        "|---" * (7 + 2 * len(BATCHES)) + "|",
        *(line(row) for row in table["rows"] if "ms" in row), "",
        *(f"- Not run: {'; '.join(where)}: {reason}" for reason, where in reasons.items()), "",
    ])  # fmt: skip


def line(row: Mapping[str, Any]) -> str:
    """One network by one runtime."""
    held = {"fp32": None, "fp16": row.get("half_layers"), "int8": row.get("quantised_layers")}[row["precision"]]
    layers = "" if "layers" not in row else f"{row['layers']}, {'-' if held is None else held}, {row['reformats']}"
    sizes = (f"{row['bytes'] / 1e6:.1f}", f"{row['seconds']:.1f}") if "bytes" in row else ("", "")
    cells = []
    for batch in map(str, BATCHES):
        one = row.get("speedup", {}).get(batch)
        faster = "" if one is None else f"{one['value']:.2f}x ({one['low']:.2f} to {one['high']:.2f})"
        cells += [f"{row['ms'][batch]:.3f}", faster]
    words = (row["runtime"], row["precision"], row["form"], f"{row['relative_difference']:.1e}", layers, *sizes, *cells)
    return "| " + " | ".join(words) + " |"


if __name__ == "__main__":
    main()
