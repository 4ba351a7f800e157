"""`hscc-edge demo`: the whole path on a synthetic cohort, each step printed as the command a user would type."""

from __future__ import annotations

import json
import os
import shlex
import time
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output

METHODS = ("hscc", "svd", "tucker")


@dataclass(frozen=True, slots=True)
class Steps:
    """Runs verbs in this process, and remembers how long each took."""

    output: Output
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, name: str, *arguments: object) -> dict[str, Any]:
        """Print the command, run it, return its JSON object; `name` is what its time is booked under."""
        from typer.main import get_command

        from hscc_edge.cli import app

        words = [str(argument) for argument in arguments]
        self.output.say(f"$ hscc-edge {shlex.join(words)}")
        started, text = time.perf_counter(), StringIO()
        with redirect_stdout(text):
            get_command(app).main([*words, "--json"], standalone_mode=False)
        taken = time.perf_counter() - started
        self.seconds[name] = round(self.seconds.get(name, 0.0) + taken, 2)
        self.output.say(f"  {taken:.1f} s")
        result: dict[str, Any] = json.loads(text.getvalue())
        return result


def demo(
    out: Annotated[Path, typer.Option(help="New directory for everything the demo makes.")] = Path("demo"),
    patients: Annotated[int, typer.Option(help="Synthetic patients.")] = 400,
    recipe: Annotated[Path, typer.Option(help="Training recipe.")] = Path("calibration/recipes/phantom-alexnet.toml"),
    budget: Annotated[str, typer.Option(help="Budget of every method.")] = "flops=6x",
    seconds: Annotated[float, typer.Option(help="Latency timing a validation.")] = 5.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier demo left in --out.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Phantom cohort, training, three compressions, ONNX, an engine, validation, and the daemon, in a row.

    Example: hscc-edge demo --out demo
    """
    from hscc_edge import durable
    from hscc_edge.cli.served import serve_cohort

    output, started = Output(as_json), time.perf_counter()
    _clear(out, overwrite)
    steps, cohort, dense = Steps(output), out / "cohort", out / "dense"
    steps.run("cohort", "cohort", "phantom", cohort, "--patients", patients)
    steps.run("lock", "cohort", "lock", cohort, "--jobs", os.cpu_count() or 1)
    steps.run("cohort report", "cohort", "report", cohort, "--out", out / "cohort.html")
    steps.run("train", "train", recipe, "--cohort", cohort, "--out", dense)
    steps.run("export", "export", dense, "--cohort", cohort, "--precision", "fp32")
    found = {method: _compress(steps, out, method, budget, seconds) for method in METHODS}
    engine = steps.run("build", "build", out / "hscc", "--precision", "fp16", "--cache", out / "engines")
    serving = time.perf_counter()
    served = serve_cohort(output, out, cohort, out / "hscc", found["hscc"]["cases"])
    steps.seconds["serve"] = round(time.perf_counter() - serving, 2)
    steps.seconds["total"] = round(time.perf_counter() - started, 2)
    summary = _summary(found, budget, engine, served, steps.seconds)
    durable.write_json(out / "summary.json", summary)
    _show(output, summary, out)
    output.result(summary)


def _clear(out: Path, overwrite: bool) -> None:
    import shutil

    from hscc_edge import durable
    from hscc_edge.errors import StorageError

    if out.exists() and any(out.iterdir()):
        if not (overwrite and (out / "cohort").is_dir()):
            raise StorageError(f"{out} is not empty: give a new directory, or --overwrite to replace an earlier demo's")
        shutil.rmtree(out)
    with durable.storage(out):
        out.mkdir(parents=True, exist_ok=True)


def _compress(steps: Steps, out: Path, method: str, budget: str, seconds: float) -> dict[str, Any]:
    cohort, dense, small = out / "cohort", out / "dense", out / method
    steps.run("compress", "compress", dense, "--cohort", cohort, "--method", method, "--budget", budget, "--out", small)
    steps.run("export", "export", small, "--cohort", cohort, "--precision", "fp32,fp16")
    report = out / f"report-{method}.html"
    return steps.run(
        "validate",
        "validate",
        small,
        "--reference",
        dense,
        "--cohort",
        cohort,
        "--report",
        report,
        "--seconds",
        seconds,
    )


def _summary(
    found: dict[str, dict[str, Any]], budget: str, engine: dict[str, Any], served: dict[str, Any], seconds: Any
) -> dict[str, Any]:
    first = found["hscc"]
    return {
        "dense": {
            "accuracy": first["reference_figures"]["accuracy"]["value"],
            "flops": first["candidate"]["dense_flops"],
            "params": first["candidate"]["dense_params"],
            "latency_p50_ms": first["race"]["reference"]["p50_ms"],
        },
        "compressed": [_row(method, budget, evidence) for method, evidence in found.items()],
        "engine": {key: engine[key] for key in ("builder", "version", "bytes", "executed")},
        "served": served,
        "seconds": seconds,
        "conditions": first["conditions"],
    }


def _row(method: str, budget: str, evidence: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": method,
        "budget": budget,
        "accuracy": evidence["candidate_figures"]["accuracy"]["value"],
        "kl": evidence["comparison"]["kl"],
        "flops": evidence["candidate"]["flops"],
        "params": evidence["candidate"]["params"],
        "latency_p50_ms": evidence["race"]["candidate"]["p50_ms"],
        "speedup": evidence["race"]["speedup"],
    }


def _show(output: Output, summary: dict[str, Any], out: Path) -> None:
    dense = summary["dense"]
    rows = [("dense", f"{100 * dense['accuracy']:.1f} %", "-", f"{dense['flops'] / 1e6:.1f}",
             f"{dense['params'] / 1e6:.2f}", f"{dense['latency_p50_ms']:.2f}", "-")]  # fmt: skip
    for row in summary["compressed"]:
        rows.append(
            (row["method"], f"{100 * row['accuracy']:.1f} %", f"{row['kl']:.4f}", f"{row['flops'] / 1e6:.1f}",
             f"{row['params'] / 1e6:.2f}", f"{row['latency_p50_ms']:.2f}", f"{row['speedup']:.2f}x")
        )  # fmt: skip
    columns = ("classifier", "accuracy", "KL", "MFLOP", "M parameters", "p50 ms", "speed-up")
    output.table(f"Synthetic phantom, {summary['conditions']['runtime_name']}, 1 thread", columns, rows)
    served, engine = summary["served"], summary["engine"]
    output.say(
        f"engine: {engine['builder']} {engine['version']}, {engine['bytes']:,} bytes, executed: not run (no GPU)"
    )
    output.say(
        f"served: {served['sent']} studies sent, {served['acknowledged']} acknowledged, {served['reports']} reports, "
        f"agreement with validate {served['agreement']:.3f}"
    )
    output.say(f"{summary['seconds']['total']:.0f} s; see {out}/report-hscc.html, cohort.html and summary.json")
