"""From the rows of compress.py to figures: test logits, statistics, interleaved times, table.json and table.md."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hscc_edge import durable
from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.model.decision import decide, parse_rule
from hscc_edge.model.head import parse_head
from hscc_edge.validate.compare import compare
from hscc_edge.validate.machine import machine_facts
from hscc_edge.validate.metrics import figures
from hscc_edge.validate.predict import Case

RESAMPLES = 2000


def make(out: Path, cohort_path: Path, dense_path: Path, images: Any, rounds: int) -> dict[str, Any]:
    """Measure every row in OUT, write the table and return it."""
    bundle, cohort = read_bundle(dense_path), read_cohort(cohort_path).select("test")
    rows = [
        row for path in sorted(out.glob("*.json")) if path.name != "table.json" for row in json.loads(path.read_text())
    ]
    made = [row for row in rows if "file" in row]
    reference = logits_of(out, "dense", bundle.path("models/model.onnx"), images)
    truth = cases(bundle, cohort, reference)
    for row in made:
        found = logits_of(out, row["file"], out / f"{row['file']}.onnx", images)
        row.update(judge(bundle, truth, cases(bundle, cohort, found)))
    race(bundle.path("models/model.onnx"), out, made, np.ascontiguousarray(images[0]), rounds)
    head = {
        "network": bundle.spec.network["name"], "test_images": len(images),
        "test_classes": dict(sorted(Counter(case.label for case in truth).items())), **machine_facts(),
        "dense": dense_figures(bundle, truth),
        "training": bundle.spec.training, "rounds": rounds,
    }  # fmt: skip
    table = {**head, "rows": [*made, *(row for row in rows if "file" not in row)], "seeds": over_seeds(made)}
    durable.write_json(out / "table.json", table)
    durable.write_text(out / "table.md", markdown(table))
    durable.write_text(out / "table-short.md", short(table))
    durable.write_text(out / "table-parts.md", parts(table))
    return table


def logits_of(out: Path, name: str, graph: Path, images: Any) -> Any:
    """Test logits, kept in OUT."""
    path = out / f"{name}.npy"
    if not path.is_file():
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        np.save(path, np.concatenate([session.run(None, {"image": image[None]})[0] for image in images]))
    return np.load(path)


def cases(bundle: Bundle, cohort: Cohort, logits: Any) -> list[Case]:
    """One case an image."""
    rule, head = parse_rule(bundle.spec.decision), parse_head(bundle.spec.head)
    pairs = zip(cohort.instances, logits, strict=True)
    return [Case(item.sop, item.patient, item.label, decide(rule, head, row[None]), row[None]) for item, row in pairs]


def dense_figures(bundle: Bundle, truth: Sequence[Case]) -> dict[str, Any]:
    """Accuracy and macro-F1 of the dense network."""
    right = np.array([case.decision.label == case.label for case in truth])
    found = figures([c.label for c in truth], [c.decision.label for c in truth], present(bundle, truth),
                    [c.patient for c in truth])  # fmt: skip
    return {"accuracy": float(right.mean()), "accuracy_se": bootstrap_se(right), "macro_f1": found.macro_f1.value}


def present(bundle: Bundle, truth: Sequence[Case]) -> tuple[str, ...]:
    """The classes that the test split has, which macro-F1 is the mean over."""
    return tuple(label for label in bundle.spec.labels if any(case.label == label for case in truth))


def judge(bundle: Bundle, truth: Sequence[Case], found: Sequence[Case]) -> dict[str, Any]:
    """A row's figures on the test split; standard errors by bootstrap over it."""
    compared = compare(truth, found, parse_head(bundle.spec.head))
    right = np.array([case.decision.label == case.label for case in found])
    labels = present(bundle, truth)
    told = figures([c.label for c in found], [c.decision.label for c in found], labels, [c.patient for c in found])
    return {
        "accuracy": float(right.mean()), "accuracy_se": bootstrap_se(right), "macro_f1": told.macro_f1.value,
        "macro_f1_se": f1_se(found, labels), "kl": compared.kl, "kl_se": compared.kl_se,
        "difference": compared.difference, "difference_low": compared.low, "difference_high": compared.high,
    }  # fmt: skip


def bootstrap_se(right: Any) -> float:
    """Of a mean over the test set."""
    generator = np.random.default_rng(0)
    picks = generator.integers(0, len(right), size=(RESAMPLES, len(right)))
    return float(right[picks].mean(axis=1).std(ddof=1))


def f1_se(found: Sequence[Case], labels: Sequence[str]) -> float:
    """Bootstrap standard error of macro-F1, from resampled confusion matrices."""
    index = {label: number for number, label in enumerate(labels)}
    size = len(labels)
    cells = np.array([index[c.label] * (size + 1) + index.get(c.decision.label or "", size) for c in found])
    generator = np.random.default_rng(0)
    values = []
    for _ in range(RESAMPLES // 4):
        draw = cells[generator.integers(0, len(cells), len(cells))]
        matrix = np.bincount(draw, minlength=size * (size + 1)).reshape(size, size + 1)
        hits = np.diag(matrix[:, :size])
        values.append(np.mean(2 * hits / np.maximum(matrix.sum(1) + matrix[:, :size].sum(0), 1)))
    return float(np.std(values, ddof=1))


def race(dense: Path, out: Path, rows: Sequence[dict[str, Any]], image: Any, rounds: int) -> None:
    """Time all networks in turn, one thread, batch 1; adds speedup with a 95 % interval over rounds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    paths = [dense, *(out / f"{row['file']}.onnx" for row in rows)]
    sessions = [onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for path in paths]
    feed, times = {"image": image[None]}, []
    for number in range(rounds + 3):
        line = []
        for session in sessions:
            start = time.perf_counter_ns()
            session.run(None, feed)
            line.append((time.perf_counter_ns() - start) / 1e6)
        if number >= 3:
            times.append(line)
    found = np.array(times)
    picks = np.random.default_rng(0).integers(0, rounds, size=(500, rounds))
    medians = np.median(found[picks], axis=1)
    for index, row in enumerate(rows, start=1):
        low, high = np.percentile(medians[:, 0] / medians[:, index], (2.5, 97.5))
        row["latency_ms"] = float(np.median(found[:, index]))
        row["dense_latency_ms"] = float(np.median(found[:, 0]))
        row["speedup"], row["speedup_low"], row["speedup_high"] = (
            row["dense_latency_ms"] / row["latency_ms"], float(low), float(high)
        )  # fmt: skip


def over_seeds(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard error over calibration seeds, of what was done with several."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["label"] == "hscc" and not row["recovery_s"]:
            groups[row["label"], row["budget"]].append(row)
    found = []
    for (label, budget), members in groups.items():
        if len({row["seed"] for row in members}) > 1:
            told: dict[str, Any] = {"label": label, "budget": budget, "seeds": len(members)}
            for key in ("accuracy", "kl", "speedup", "macro_f1"):
                values = np.array([row[key] for row in members])
                told[key], told[f"{key}_seed_se"] = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
            found.append(told)
    return found


FRONT = ("hscc", "hscc + distillation", "paper", "data-svd", "tucker", "alds", "pruning", "svd", "svd + refit")
HEAD = ("method", "budget", "recovery s", "accuracy % (SE)", "difference, points (95 %, paired)", "macro-F1 (SE)",
        "KL (SE)", "FLOPs", "parameters", "speed-up (95 %)", "compress s", "peak MiB")  # fmt: skip


def markdown(table: Mapping[str, Any]) -> str:
    """The table with what it was measured on."""
    known = ", ".join(f"{name} {value}" for name, value in {**table["versions"], "torch": version("torch")}.items())
    dense = table["dense"]
    classes = ", ".join(f"{count} {label}" for label, count in table["test_classes"].items())
    lines = [
        f"{table['network']}, {table['test_images']} test pictures ({classes}): what is left once duplicates are gone, "
        "and whatever is nearly equal to a training picture; too few to prove a small margin. Dense accuracy "
        f"{100 * dense['accuracy']:.1f} (SE {100 * dense['accuracy_se']:.1f}) %, macro-F1 over these classes "
        f"{dense['macro_f1']:.3f}. KL: mean over the test pictures, nats, from the dense network. Speed-up: "
        f"ONNX Runtime, one thread, batch 1, medians of {table['rounds']} rounds of all networks in turn. "
        f"{table['machine']}; {table['date']}; {known}.", "",
        f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|",
        *(line(row) for row in table["rows"]),
    ]  # fmt: skip
    if table["seeds"]:
        lines += ["", "Over calibration seeds (mean, standard error of the mean):", "",
                  "| method | budget | seeds | accuracy % | KL | speed-up |", "|---|---|---|---|---|---|"]  # fmt: skip
        lines += [seed_line(entry) for entry in table["seeds"]]
    return "\n".join(lines) + "\n"


SHORT = (0, 1, 3, 4, 6, 7, 8, 9)


def short(table: Mapping[str, Any]) -> str:
    """For the README: every method at the middle budgets, without times to compress and memory."""
    rows = [row for row in table["rows"] if "file" in row and row["seed"] == 0 and row["label"] in FRONT
            and row["budget"] in ("flops=6x", "flops=18x", "latency=6x", "latency=10x")]  # fmt: skip
    rows.sort(key=lambda row: row["method"] != "hscc")
    lines = [[HEAD[index] for index in SHORT], ["---"] * len(SHORT)]
    lines += [[line(row).strip("| ").split(" | ")[index] for index in SHORT] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def parts(table: Mapping[str, Any]) -> str:
    """What each part brings: one line a label, both currencies at 6x side by side."""
    found: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for row in table["rows"]:
        named = row["method"] in ("hscc", "data-svd") and not row["recovery_s"] and row["seed"] == 0
        if named and row["budget"] in ("flops=6x", "latency=6x"):
            found[row["label"]][row["budget"]] = row
    lines = [
        "| what may be used | 6x fewer FLOPs: KL (SE) | 6x fewer ms: KL (SE) | measured speed-up |",
        "|---" * 4 + "|",
    ]
    for label, rows in found.items():
        cells = [divergence(rows.get(budget)) for budget in ("flops=6x", "latency=6x")]
        timed = rows.get("latency=6x", {})
        faster = f"{timed['speedup']:.2f}x" if "speedup" in timed else "-"
        lines.append(f"| {label} | {' | '.join(cells)} | {faster} |")
    return "\n".join(lines) + "\n"


def divergence(row: Mapping[str, Any] | None) -> str:
    """A row's KL with its standard error."""
    if row is None:
        return "-"
    return f"{row['kl']:.4f} ({row['kl_se']:.4f})" if "kl" in row else "out of reach"


def seed_line(entry: Mapping[str, Any]) -> str:
    """One row over seeds in Markdown."""
    accuracy = f"{100 * entry['accuracy']:.2f} ({100 * entry['accuracy_seed_se']:.2f})"
    divergence, faster = (f"{entry[key]:.4g} ({entry[f'{key}_seed_se']:.2g})" for key in ("kl", "speedup"))
    return f"| {entry['label']} | {entry['budget']} | {entry['seeds']} | {accuracy} | {divergence} | {faster} |"


def line(row: Mapping[str, Any]) -> str:
    """One row in Markdown."""
    label = f"{row['label']}, seed {row['seed']}" if row["seed"] else row["label"]
    if "file" not in row:
        return f"| {row['label']} | {row['budget']} | refused: {row['refused']} |" + " |" * 9
    cells = (
        label, row["budget"], f"{row['recovery_s']:.0f}",
        f"{100 * row['accuracy']:.1f} ({100 * row['accuracy_se']:.1f})",
        f"{100 * row['difference']:+.1f} ({100 * row['difference_low']:+.1f} to {100 * row['difference_high']:+.1f})",
        f"{row['macro_f1']:.3f} ({row['macro_f1_se']:.3f})", f"{row['kl']:.4f} ({row['kl_se']:.4f})",
        f"1/{row['flops_ratio']:.2f}", f"1/{row['params_ratio']:.1f}",
        f"{row['speedup']:.2f}x ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})",
        f"{row['compress_s']:.0f}", f"{row['peak_rss_mib']:.0f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"
