"""What `cohort check` finds in the public brain MRI pictures, against an independent count and copies made on purpose.

    python benchmarks/duplicates.py --data DIR --out DIR

Writes duplicates-brain-mri.json and .md into OUT, and contact sheets for the eye into OUT/sheets (not to be published).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import resource
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw

from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.data.images import import_images
from hscc_edge.data.leakage import Findings, check_cohort, without_leaks
from hscc_edge.data.near import DUPLICATE, NEIGHBOURING, candidates, compare, near_pairs, owners
from hscc_edge.data.phantom import write_phantom
from hscc_edge.data.shortcut import FAMILIES
from hscc_edge.data.thumbnail import signatures, thumbnail
from hscc_edge.durable import write_text

COPIES = 200  # of each kind


def pictures(data: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """(split, class, grey picture) straight from the archives."""
    for split in ("training", "testing"):
        with tarfile.open(data / f"{split}.tar") as tar:
            for member in tar:
                if member.isfile():
                    image = PIL.Image.open(io.BytesIO(tar.extractfile(member).read())).convert("L")
                    yield split, Path(member.name).parent.name, np.asarray(image)


def kinds(random: np.random.Generator) -> dict[str, Any]:
    """Name -> function that makes a copy."""
    image = PIL.Image.fromarray

    def jpeg(a: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        image(a).save(file, "JPEG", quality=50)
        return np.asarray(PIL.Image.open(file))

    def turned(a: np.ndarray) -> np.ndarray:
        which = int(random.integers(1, 8))
        a = np.rot90(a, which % 4)
        return np.ascontiguousarray(a.T if which >= 4 else a)

    def windowed(a: np.ndarray) -> np.ndarray:
        width, centre = random.uniform(0.6, 1.0) * 255, random.uniform(0.4, 0.5) * 255
        return np.clip((a - (centre - width / 2)) / width * 255, 0, 255).astype(np.uint8)

    return {
        "one of seven turns and mirrors": turned,
        "resized to 50 to 200 %": lambda a: np.asarray(image(a).resize((int(random.integers(112, 449)),) * 2)),
        "JPEG of quality 50": jpeg,
        "windowed": windowed,
        "5 % cropped from each side": lambda a: a[11:-11, 11:-11],
        "5 % cropped from two sides": lambda a: a[11:, 11:],
    }


def recall(originals: list[np.ndarray], seed: int) -> tuple[dict[str, Any], list[Any]]:
    """How many copies are joined with their original, among all distinct originals; and all pairs found."""
    random = np.random.default_rng(seed)
    chosen = {name: random.choice(len(originals), COPIES, replace=False) for name in kinds(random)}
    made = [make(originals[i]) for name, make in kinds(random).items() for i in chosen[name]]
    thumbs = [thumbnail(a.astype(np.float32)) for a in [*originals, *made]]
    marks = np.stack([signatures(thumb) for thumb in thumbs])
    pairs = near_pairs(np.stack(thumbs), marks, np.arange(len(thumbs)))
    owner = owners([(p.one, p.other) for p in pairs if p.duplicate], len(thumbs))
    found, start = {}, len(originals)
    for name, sources in chosen.items():
        found[name] = float((owner[start : start + COPIES] == owner[sources]).mean())
        start += COPIES
    return {"copies_each": COPIES, "seed": seed, "recall": found}, [
        pair for pair in pairs if max(pair.one, pair.other) < len(originals)
    ]


def distinct(data: Path) -> tuple[dict[str, int], list[np.ndarray], list[str]]:
    """Exact duplicates by decoded grey pixels, counted without the product; the distinct pictures and classes."""
    groups: dict[str, list[str]] = defaultdict(list)
    kept, labels = [], []
    for split, label, image in pictures(data):
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        if digest not in groups:
            kept.append(image)
            labels.append(label)
        groups[digest].append(split)
    double = [splits for splits in groups.values() if len(splits) > 1]
    counts = {
        "pictures": sum(map(len, groups.values())),
        "distinct": len(groups),
        "groups": len(double),
        "files": sum(map(len, double)),
        "across_splits": sum(len(set(splits)) > 1 for splits in double),
    }
    return counts, kept, labels


def crossed(pairs: list[Any], labels: list[str], originals: list[np.ndarray]) -> dict[str, Any]:
    """Pairs of pictures of two classes, which can be one picture only where a label is wrong."""
    across = sorted(
        (pair for pair in pairs if labels[pair.one] != labels[pair.other]), key=lambda pair: -pair.similarity
    )
    random = np.random.default_rng(1)
    one, other = random.integers(0, len(originals), (2, 8_000))
    apart = np.array(labels)[one] != np.array(labels)[other]
    small = np.stack([thumbnail(a.astype(np.float32)) for a in originals])
    values = np.concatenate(
        [compare((small[one[apart][i : i + 256]], small[other[apart][i : i + 256]])) for i in range(0, 4096, 256)]
    )
    return {
        "duplicates_between_classes": sum(pair.duplicate for pair in across),
        "neighbouring_between_classes": sum(not pair.duplicate for pair in across),
        "largest_similarities": [round(pair.similarity, 3) for pair in across[:8]],
        "random_pairs_of_two_classes": len(values),
        "of_them_duplicates": int((values >= DUPLICATE).sum()),
        "of_them_neighbouring": int((values >= NEIGHBOURING).sum()),
        "pairs_of_one_class": len(pairs) - len(across),
    }


def apart(out: Path, patients: int = 400) -> dict[str, Any]:
    """What is called a duplicate among pictures that are none: slices of so many synthetic heads."""
    if not (out / "phantom" / "cohort.toml").is_file():
        write_phantom(out / "phantom", patients=patients)
    cohort = read_cohort(out / "phantom")
    found = check_cohort(cohort, shortcuts=False)
    pictures = len(cohort.instances)
    return {"pictures": pictures, "false_groups": len(found.near), "per_1000": 1000 * len(found.near) / pictures}


def leaked(whole: Cohort, findings: Findings) -> dict[str, dict[str, int]]:
    """By class: distinct test pictures, and those of them that are nearly equal to none in train."""
    again = {item.file for group in findings.duplicates for item in group[1:]}
    found = {}
    for name, part in (("test", whole), ("without_leaks", without_leaks(whole, findings))):
        left = Counter(item.label for item in part.instances if item.split == "test" and item.file not in again)
        found[name] = {label: left[label] for label in whole.classes}
    return found


def search_cost(marks: np.ndarray, counts: tuple[int, ...] = (5_000, 10_000, 20_000)) -> dict[str, float]:
    """Seconds of the search alone, on signatures drawn near real ones."""
    random, found = np.random.default_rng(2), {}
    for count in counts:
        drawn = marks[random.integers(0, len(marks), count)].astype(np.float32)
        drawn += random.normal(0, 0.05, drawn.shape).astype(np.float32)
        drawn = (drawn / np.linalg.norm(drawn, axis=2, keepdims=True)).astype(np.float16)
        start = time.process_time()
        candidates(drawn, np.arange(count))
        found[str(count)] = round(time.process_time() - start, 1)
    return found


def sheet(path: Path, pairs: list[Any], originals: list[np.ndarray], columns: int = 6, side: int = 150) -> None:
    """Pairs side by side with their similarity, for the eye."""
    page = PIL.Image.new("L", (columns * (2 * side + 6), -(-len(pairs) // columns) * (side + 16)), 255)
    draw = PIL.ImageDraw.Draw(page)
    for place, pair in enumerate(pairs):
        left, top = place % columns * (2 * side + 6), place // columns * (side + 16)
        for index, number in enumerate((pair.one, pair.other)):
            small = PIL.Image.fromarray(originals[number]).resize((side, side))
            page.paste(small, (left + index * side, top + 14))
        draw.text((left, top), f"{place} {pair.similarity:.3f}", fill=0)
    page.save(path)


def sheets(out: Path, pairs: list[Any], originals: list[np.ndarray]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(3)
    duplicates = [pair for pair in pairs if pair.duplicate]
    others = [pair for pair in pairs if not pair.duplicate]
    for name, some in (("duplicates", duplicates), ("neighbouring", others)):
        drawn = [some[i] for i in random.choice(len(some), min(30, len(some)), replace=False)]
        sheet(out / f"{name}.png", drawn, originals)
    sheet(out / "least-alike.png", sorted(duplicates, key=lambda pair: pair.similarity)[:30], originals)


def markdown(found: dict[str, Any]) -> str:
    exact, check = found["independent"], found["check"]
    lines = [
        "# Duplicates and shortcuts in the public brain MRI pictures",
        "",
        f"By `benchmarks/duplicates.py`, {found['date']}, {found['machine']}, "
        + ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        + ". No pictures were removed first: this is what the removal of leaks starts from.",
        "",
        "| | groups | files | across splits |",
        "|---|---:|---:|---:|",
        f"| equal pixels, counted without the product | {exact['groups']} | {exact['files']} "
        f"| {exact['across_splits']} |",
    ]
    for name, counts in (*check["duplicates"].items(), ("neighbouring", check["neighbouring"])):
        lines.append(f"| {name} | {counts['groups']} | {counts['files']} | {counts['across_splits']} |")
    lines += ["", f"Groups of duplicates with two labels: {check['contradicting_labels']}.", ""]
    made = found["injected"]
    lines += [f"Copies made of {made['copies_each']} pictures each (seed {made['seed']}):", "", "| copy | joined |"]
    lines += ["|---|---:|", *(f"| {name} | {value:.1%} |" for name, value in made["recall"].items()), ""]
    crossing = found["between_classes"]
    lines += [
        f"Of {crossing['random_pairs_of_two_classes']} random pairs of two classes {crossing['of_them_duplicates']} "
        f"are called duplicates, {crossing['of_them_neighbouring']} neighbouring. Among all candidates of two classes: "
        f"{crossing['duplicates_between_classes']} duplicates, {crossing['neighbouring_between_classes']} "
        f"neighbouring; largest similarities {crossing['largest_similarities']}.",
        "",
        f"Of {found['apart']['pictures']} slices of 400 synthetic heads, of which no two are one picture, "
        f"{found['apart']['false_groups']} groups are called duplicates: {found['apart']['per_1000']:.2f} in 1,000.",
        "",
        f"By eye: {found['by_eye']}",
        "",
        "Distinct test pictures by class, and what is left once those that are nearly equal to a training picture "
        f"are gone: {found['leaked']['test']}; {found['leaked']['without_leaks']}.",
        "",
        "| what the label is told from | verdict | balanced accuracy | chance | p | AUC, one against rest |",
        "|---|---|---:|---:|---:|---|",
    ]
    for family, item in check["shortcuts"].items():
        low, high = item["interval"]
        areas = ", ".join(f"{label} {area:.2f}" for label, area in item["auc"].items())
        score = f"{item['balanced_accuracy']:.3f} ({low:.3f} to {high:.3f})"
        lines.append(
            f"| {family}: {FAMILIES[family]} | {item['verdict']} | {score} | {item['chance']:.2f} "
            f"| {item['p_value']:.4f} | {areas} |"
        )
    cost = found["cost"]
    lines += [
        "",
        f"The check took {cost['check_s']} s of wall time and {cost['check_cpu_s']} s of processor time with "
        f"{cost['jobs']} processes on a shared machine; peak memory of the largest process {cost['peak_mib']} MiB. "
        f"Search alone, processor seconds by pictures: {cost['search_cpu_s']}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with training.tar and testing.tar")
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    parser.add_argument("--cohort", type=Path, help="the imported pictures, made there if absent")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--by-eye", default="not looked at.", help="what a person saw on the contact sheets")
    options = parser.parse_args()
    cohort = options.cohort or options.out / "cohort"
    if not (cohort / "cohort.toml").is_file():
        raw = options.out / "pictures"
        for split in ("training", "testing"):
            with tarfile.open(options.data / f"{split}.tar") as tar:
                tar.extractall(raw / split, filter="data")
        import_images(raw, cohort, name="brain-mri", replace=True)
    start, before = time.perf_counter(), os.times()
    whole = read_cohort(cohort)
    findings = check_cohort(whole, jobs=options.jobs)
    after = os.times()
    cost = {
        "jobs": options.jobs,
        "check_s": round(time.perf_counter() - start, 1),
        "check_cpu_s": round(sum(after[:4]) - sum(before[:4]), 1),
        "peak_mib": round(max(resource.getrusage(who).ru_maxrss for who in (0, -1)) / 1024),
    }
    counts, originals, labels = distinct(options.data)
    injected, pairs = recall(originals, seed=11)
    marks = np.stack([signatures(thumbnail(a.astype(np.float32))) for a in originals[::4]])
    found = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "versions": {name: version(name) for name in ("hscc-edge", "numpy", "scipy", "scikit-learn", "pillow")},
        "thresholds": {"duplicate": DUPLICATE, "neighbouring": NEIGHBOURING},
        "independent": counts,
        "check": findings.to_json(),
        "injected": injected,
        "between_classes": crossed(pairs, labels, originals),
        "apart": apart(options.out),
        "leaked": leaked(whole, findings),
        "by_eye": options.by_eye,
        "cost": {**cost, "search_cpu_s": search_cost(marks)},
    }
    sheets(options.out / "sheets", pairs, originals)
    write_text(options.out / "duplicates-brain-mri.json", json.dumps(found, indent=1) + "\n")
    write_text(options.out / "duplicates-brain-mri.md", markdown(found))


if __name__ == "__main__":
    main()
