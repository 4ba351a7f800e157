"""What `hscc-edge compress` costs from start to written bundle, and how that grows with images, layers and channels.

    python benchmarks/compress_cost.py --data DIR --out results

Each case is one run of the command in a process of its own: wall time, processor time and peak memory. The networks
beside the trained AlexNet have fresh weights, since only their sizes count here. Ends in OUT/cost.json and OUT/cost.md.
A case that is done is not done again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brain_mri
import torch

from hscc_edge import durable
from hscc_edge.bundle import WEIGHTS, read_bundle, write_bundle
from hscc_edge.compress.cost import layer_shapes
from hscc_edge.model.load import fresh_network, weights_of
from hscc_edge.validate.machine import machine_facts


@dataclass(frozen=True, slots=True)
class Case:
    """One run: `grows` names what is varied among the cases of one curve; a network of "" is the trained AlexNet."""

    grows: str
    images: int
    network: str = ""
    args: tuple[tuple[str, Any], ...] = ()
    side: int = 64

    @property
    def name(self) -> str:
        """Of its files."""
        inner = "-".join(f"{key}{value}" for key, value in self.args)
        return "-".join(filter(None, (self.network or "alexnet", inner, str(self.side), str(self.images))))


CASES = (
    *(Case("images", count, side=224) for count in (128, 256, 512, 1024)),
    *(Case("layers", 128, name) for name in ("resnet10", "resnet18", "resnet34")),
    *(Case("channels", 128, "vgg16", (("width", width),)) for width in (0.25, 0.5, 1.0)),
    Case("resolution", 128, "vgg16", side=128),
    Case("VGG16-sized", 512, "vgg16", side=224),
)


def main() -> None:
    """Run the cases that are not done, then write the table."""
    parser = brain_mri.parser(__doc__)
    arguments = parser.parse_args()
    cohort, trained = brain_mri.prepare(arguments.data, arguments.cache)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = [run(case, trained, cohort, arguments.out) for case in CASES]
    table = {**machine_facts(), "torch": torch.__version__, "rows": rows}
    durable.write_json(arguments.out / "cost.json", table)
    durable.write_text(arguments.out / "cost.md", markdown(table))


def run(case: Case, trained: Path, cohort: Path, out: Path) -> dict[str, Any]:
    """Compress once; wall time and peak memory are those of the whole process."""
    path = out / f"{case.name}.cost.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    dense = fresh_bundle(case, trained, out / f"{case.name}-dense") if case.network else trained
    words = ("compress", dense, "--cohort", cohort, "--budget", "flops=3x", "--images", case.images)
    command = [
        sys.executable,
        "-m",
        "hscc_edge",
        *map(str, words),
        "--out",
        str(out / case.name),
        "--overwrite",
        "--json",
    ]
    print(f"{case.name}", file=sys.stderr, flush=True)
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started
    if status:
        raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    row = {
        "grows": case.grows, "network": case.network or "alexnet", "args": dict(case.args), "side": case.side,
        "images": case.images, **sizes(dense), "wall_s": wall_s, "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_mib": usage.ru_maxrss / 1024,
    }  # fmt: skip
    durable.write_json(path, row)
    return row


def fresh_bundle(case: Case, trained: Path, out: Path) -> Path:
    """A bundle like the trained one with another network of fresh weights."""
    spec = read_bundle(trained).spec
    preprocess = [
        {**step, "height": case.side, "width": case.side} if step["name"] == "resize" else step
        for step in spec.preprocess
    ]
    spec = dataclasses.replace(
        spec, name=case.name, network={"name": case.network, "args": dict(case.args)}, preprocess=preprocess
    )
    torch.manual_seed(0)
    write_bundle(out, spec, {WEIGHTS: weights_of(fresh_network(spec))}, replace=True)
    return out


def sizes(dense: Path) -> dict[str, Any]:
    """Layers that can be factorised, their widest output, and FLOPs of the dense network."""
    bundle = read_bundle(dense)
    network = fresh_network(bundle.spec).eval()
    example = torch.zeros(1, *bundle.spec.input_shape)
    shapes = layer_shapes(network, lambda candidate: candidate(example))
    usable = [shape for shape in shapes if not shape.reason]
    return {
        "layers": len(usable), "widest": max(shape.outputs for shape in usable),
        "dense_gflops": sum(shape.flops for shape in shapes) / 1e9,
    }  # fmt: skip


def markdown(table: dict[str, Any]) -> str:
    """The curves, one block each, with the exponent between the first and the last case."""
    lines = [
        "`hscc-edge compress --budget flops=3x`, from start to written bundle, refit included, one process a row. "
        f"{table['machine']}; {table['date']}; torch {table['torch']}.", "",
        "| grows | network | side | images | layers | widest m | dense GFLOPs | wall s | processor s | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in table["rows"]:
        inner = "".join(f", {key} {value}" for key, value in row["args"].items())
        lines.append(
            f"| {row['grows']} | {row['network']}{inner} | {row['side']} | {row['images']} | {row['layers']} | "
            f"{row['widest']} | {row['dense_gflops']:.2f} | {row['wall_s']:.0f} | {row['cpu_s']:.0f} | "
            f"{row['peak_rss_mib']:.0f} |"
        )
    lines += ["", *(growth(table["rows"], grows, key) for grows, key in GROWTH.items())]
    return "\n".join(lines) + "\n"


GROWTH = {"images": "images", "layers": "layers", "channels": "widest"}


def growth(rows: list[dict[str, Any]], grows: str, key: str) -> str:
    """How time and memory went with what grew, as an exponent between the ends of a curve."""
    found = [row for row in rows if row["grows"] == grows]
    first, last = found[0], found[-1]
    span = math.log(last[key] / first[key])
    time_power, memory_power = (math.log(last[name] / first[name]) / span for name in ("wall_s", "peak_rss_mib"))
    return (
        f"- {grows}, from {first[key]} to {last[key]}: wall time grows with the power {time_power:.2f} of it, "
        f"peak memory with {memory_power:.2f}."
    )


if __name__ == "__main__":
    main()
