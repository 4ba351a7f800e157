"""FP16 and INT8 against FP32 on a cohort's test split: a dense and a compressed bundle, factor pairs balanced or not.

    python benchmarks/precision.py --dense DENSE --compressed HSCC --cohort COHORT --out docs

Every graph is made by the functions that `hscc-edge export` uses, from train images, and runs on ONNX Runtime's CPU. It
computes FP16 nodes in FP32, so that FP16 is emulated: each node's output is rounded. "Uneven" scales each rank of each
factor pair by a random 1e-4 to 1e4, which changes nothing in exact arithmetic. A test split of 157 pictures moves by
0.64 points with each picture, so what is exported is also compared on views of each: spoilt a little in the seven ways
of `hscc-edge robustness`, intervals over pictures. Ends in OUT/precision.json and .md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hscc_edge import durable
from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.cli.exported import chosen_of, judge_of, stream_of
from hscc_edge.compress.contract import validation_of
from hscc_edge.data.case import inputs_of
from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.export.balance import balance, pairs, transformed
from hscc_edge.export.calibrate import METHODS, Images, Span, second_moments, spans, thresholds
from hscc_edge.export.onnx import check_onnx
from hscc_edge.export.precision import emulated_fp16, full_nodes, to_fp16
from hscc_edge.export.quantise import quantisable, quantised
from hscc_edge.export.sensitivity import mixed, to_int8
from hscc_edge.model.decision import decide, parse_rule
from hscc_edge.model.head import parse_head
from hscc_edge.runtime.ort import OrtRuntime
from hscc_edge.validate.compare import compare
from hscc_edge.validate.machine import machine_facts
from hscc_edge.validate.metrics import proportion
from hscc_edge.validate.predict import Case, predict
from hscc_edge.validate.robustness import spoilt

DECADES = 4.0
DEFAULT = "percentile"


@dataclass
class Source:
    """An FP32 graph and what calibration found in it."""

    name: str
    content: bytes
    images: Images

    @cached_property
    def spans(self) -> dict[str, Span]:
        """Ranges of all tensors."""
        return spans(self.content, self.images)

    def limits(self, method: str) -> dict[str, float]:
        """Ranges of what is quantised."""
        names = set(quantisable(self.content).values())
        return thresholds(self.content, self.images, self.spans, method, names)

    def fp16(self) -> tuple[bytes, dict[str, Any]]:
        """Mixed FP16, emulated."""
        full = full_nodes(self.content, self.spans)
        return emulated_fp16(to_fp16(self.content, full)), {"full": len(full)}

    def int8(self, method: str) -> tuple[bytes, dict[str, Any]]:
        """Every node that can be in INT8, FP16 elsewhere, emulated."""
        names = quantisable(self.content)
        graph, full = mixed(self.content, self.images, self.spans, self.limits(method), names)
        return emulated_fp16(graph), {"full": len(full), "quantised": len(names), "bytes": len(graph)}

    def uncorrected(self, method: str) -> tuple[bytes, dict[str, Any]]:
        """The same without corrected biases, FP32 elsewhere."""
        names = quantisable(self.content)
        return quantised(self.content, self.limits(method), names), {"full": 0, "quantised": len(names)}


def main() -> None:
    """Both bundles, then the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--dense", "--compressed", "--cohort", "--out"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=128, help="train images that give the ranges")
    arguments = parser.parse_args()
    cohort = read_cohort(arguments.cohort)
    bundles = {name: read_bundle(getattr(arguments, name)) for name in ("dense", "compressed")}
    networks = {name: measured(name, bundle, cohort, arguments.calibration) for name, bundle in bundles.items()}
    table = {
        **machine_facts(), "cohort": cohort.name, "cohort_digest": cohort.select("test").digest,
        "calibration": arguments.calibration, "networks": networks,
    }  # fmt: skip
    durable.write_json(arguments.out / "precision.json", table)
    durable.write_text(arguments.out / "precision.md", markdown(table))


def measured(name: str, bundle: Bundle, cohort: Cohort, count: int) -> dict[str, Any]:
    """Every row of one bundle against its FP32 graph."""
    calibration, test = chosen_of(bundle, cohort.select("train"), count), cohort.select("test")
    images, full = stream_of(bundle, calibration), bundle.path("models/model.onnx").read_bytes()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "graph.onnx"
        reference = cases_of(bundle, full, test, path)
        rows = [figures(bundle, reference, reference, {"precision": "fp32", "factors": "as they are"})]
        for labels, content, facts in graphs(Source("as they are", full, images)):
            found = cases_of(bundle, content, test, path)
            rows.append(figures(bundle, reference, found, {**labels, **facts}))
            print(name, rows[-1], flush=True)
        exported, facts = as_exported(bundle, balance(full, images), images, cohort, calibration)
        labels = {"precision": "int8", "factors": "as exported", "range": DEFAULT}
        rows.append(figures(bundle, reference, cases_of(bundle, exported, test, path), {**labels, **facts}))
        seen = [views_of(bundle, content, test, path) for content in (full, exported)]
    return {
        "bundle": bundle.spec.name, "digest": bundle.digest, "pairs": len(pairs(check_onnx(full))),
        "budget": None if bundle.spec.plan is None else bundle.spec.plan["budget"], "rows": rows,
        "views": figures(bundle, *seen, labels),
    }  # fmt: skip


def graphs(given: Source) -> Iterator[tuple[dict[str, str], bytes, dict[str, Any]]]:
    """Labels, graph and facts of each row."""
    sources = [given]
    if pairs(check_onnx(given.content)):
        worse = uneven(given.content, given.images)
        sources += [
            Source("balanced", balance(given.content, given.images), given.images),
            Source("scaled, not rotated", balance(given.content, given.images, rotate=False), given.images),
            Source("uneven", worse, given.images),
            Source("uneven, then balanced", balance(worse, given.images), given.images),
        ]
    for source in sources:
        yield {"precision": "fp16", "factors": source.name}, *source.fp16()
        whole = source.name in ("as they are", "balanced")
        for method in METHODS if whole else (DEFAULT,):
            yield {"precision": "int8", "factors": source.name, "range": method}, *source.int8(method)
        if whole:
            labels = {"precision": "int8", "factors": source.name, "range": f"{DEFAULT}, biases as they are"}
            yield labels, *source.uncorrected(DEFAULT)


def uneven(content: bytes, images: Images) -> bytes:
    """Each rank scaled at random by up to four decades either way."""
    generator = np.random.default_rng(0)
    model = check_onnx(content)
    kinds = {node.name: node.op_type for node in model.graph.node}
    axes = {pair.middle: 1 if kinds[pair.reduce] == "Conv" else -1 for pair in pairs(model)}
    sizes = {name: len(moment) for name, moment in second_moments(content, lambda: first(images), axes).items()}
    scales = {name: np.diag(10.0 ** generator.uniform(-DECADES, DECADES, size)) for name, size in sizes.items()}
    return transformed(content, scales)


def first(images: Images) -> Iterator[Any]:
    """One image."""
    yield next(iter(images()))


def as_exported(
    bundle: Bundle, source: bytes, images: Images, cohort: Cohort, calibration: Cohort
) -> tuple[bytes, dict[str, Any]]:
    """What `hscc-edge export --precision int8` writes, under its contract of half a point, emulated."""
    split, _ = validation_of(cohort, calibration, parse_preprocess(bundle.spec.preprocess), seed=0)
    with tempfile.TemporaryDirectory() as scratch:
        judge = judge_of(bundle, source, split, Path(scratch))
        found = to_int8(source, images, parse_head(bundle.spec.head), judge, method=DEFAULT)
    facts = {"full": len(found.full), "quantised": found.quantised, "bytes": len(found.content)}
    return emulated_fp16(found.content), {**facts, "left": found.left, "trials": list(found.trials)}


def cases_of(bundle: Bundle, content: bytes, cohort: Cohort, path: Path) -> list[Case]:
    """The decisions of a graph."""
    path.write_bytes(content)
    return predict(bundle, OrtRuntime(path, threads=2), cohort)


def views_of(bundle: Bundle, content: bytes, cohort: Cohort, path: Path) -> list[Case]:
    """The decisions of a graph on every picture as it is and spoilt a little; a view is a case."""
    path.write_bytes(content)
    runtime, preprocess = OrtRuntime(path, threads=2), parse_preprocess(bundle.spec.preprocess)
    rule, head = parse_rule(bundle.spec.decision), parse_head(bundle.spec.head)
    found = []
    for number, items in enumerate(inputs_of(cohort, preprocess)):
        patient = cohort.pseudonym(items[0].patient)
        for view, pixels in enumerate(spoilt(cohort, items, preprocess, number, strengths=1)):
            logits = runtime.infer(pixels[None])
            found.append(Case(f"{number}-{view}", patient, items[0].label, decide(rule, head, logits), logits))
    return found


def figures(bundle: Bundle, reference: list[Case], found: list[Case], labels: Mapping[str, Any]) -> dict[str, Any]:
    """One row."""
    right = sum(case.decision.label == case.label for case in found)
    lost = compare(reference, found, parse_head(bundle.spec.head))
    return {**labels, "accuracy": asdict(proportion(right, len(found))), **asdict(lost)}


def markdown(table: Mapping[str, Any]) -> str:
    """The page."""
    lines = [
        "# FP16 and INT8 against FP32", "",
        f"Cohort {table['cohort']}, test split {table['cohort_digest'][:12]}; {table['calibration']} calibration "
        f"images of the train split; {table['machine']}; {table['date']}; "
        + ", ".join(f"{name} {value}" for name, value in table["versions"].items()) + ".", "",
        "`benchmarks/precision.py`. FP16 is emulated: every node's output is rounded to FP16, accumulation stays in",
        "FP32. INT8 runs on ONNX Runtime's CPU. Nothing here ran on a GPU. \"Uneven\": ranks scaled apart on purpose,",
        "the same function.", "",
    ]  # fmt: skip
    for name, network in table["networks"].items():
        lines += block(name, network)
    return "\n".join(lines) + "\n"


def block(name: str, network: Mapping[str, Any]) -> list[str]:
    """The table of one network."""
    budget = f", {network['budget']}" if network["budget"] else ""
    cases = network["rows"][0]["cases"]
    return [
        "", f"## {name.capitalize()}: {network['bundle']}{budget}, {network['pairs']} factor pairs", "",
        f"| precision | factors | range | accuracy %, {cases} cases | difference, points (95 %) | KL, 1e-3 nats (SE) | "
        "agreement % | INT8 nodes | FP32 nodes |", "|---" * 9 + "|",
        *(line(row) for row in network["rows"]), "", viewed(network["views"]),
    ]  # fmt: skip


def viewed(row: Mapping[str, Any]) -> str:
    """What was seen on the views, in words."""
    return (
        f"INT8 as exported on {row['cases']} views of {row['patients']} pictures (each as it is, and under each of "
        f"seven faults at its least strength): {100 * row['accuracy']['value']:.2f} % right, difference "
        f"{points(row)} points, KL {1000 * row['kl']:.3f}e-3, agreement {100 * row['agreement']:.2f} %."
    )


def points(row: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    return f"{100 * row['difference']:+.2f} ({100 * row['low']:+.2f} to {100 * row['high']:+.2f})"


def line(row: Mapping[str, Any]) -> str:
    """One row of the table."""
    words = {"fp32": "FP32", "fp16": "FP16, emulated", "int8": "INT8"}
    cells = (
        words[row["precision"]], row["factors"], row.get("range", ""), f"{100 * row['accuracy']['value']:.2f}",
        points(row),
        f"{1000 * row['kl']:.3f} ({1000 * row['kl_se']:.3f})", f"{100 * row['agreement']:.2f}",
        str(row.get("quantised", "")), str(row.get("full", "")),
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
