"""`hscc-edge cohort subset`: choose calibration images, and say what they cover."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hscc_edge.cli.output import JsonFlag, Output


def subset(
    cohort: Annotated[Path, typer.Argument(help="Cohort directory.")],
    out: Annotated[Path, typer.Argument(help="New subset file (TOML): digests, no pictures.")],
    count: Annotated[int, typer.Option(help="Images to choose.")] = 512,
    method: Annotated[
        str, typer.Option(help="random, importance, k-centre, d-optimal, facility-location or herding.")
    ] = "random",
    model: Annotated[
        Path | None, typer.Option(help="Bundle by whose features to choose and to report; random needs none.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same choice.")] = 0,
    split: Annotated[str, typer.Option(help="Split to choose from.")] = "train",
    stratify: Annotated[bool, typer.Option(help="Each class as often as its share allows.")] = True,
    near_duplicates: Annotated[
        bool, typer.Option("--near-duplicates", help="Take one of near duplicates at most, and none of a test image's.")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Directory that keeps features between runs.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Choose calibration images for `compress --calibration`; never an image or a patient of the test split.

    Example: hscc-edge cohort subset cohort calibration.toml --count 512
    Example: hscc-edge cohort subset cohort calibration.toml --count 128 --method herding --model dense
    """
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.data.coverage import coverage
    from hscc_edge.data.relatives import relatives
    from hscc_edge.data.subset import ALONE, check_choice, choose, refuse_overlap
    from hscc_edge.data.subset_file import Choice, write_subset

    check_choice(method)
    output, whole = Output(as_json), read_cohort(cohort)
    pool, features, bundle = whole.select(split), None, ""
    kin = ALONE
    if near_duplicates:
        with output.progress("near duplicates", len(pool.instances)) as advance:
            kin = relatives(pool, whole, advance)
    if model is None:
        chosen = choose(pool, count, seed, method=method, stratify=stratify, kin=kin)
        refuse_overlap(chosen, whole)
    else:
        from hscc_edge.bundle import read_bundle
        from hscc_edge.compress.calibration import features_of, select

        dense = read_bundle(model)
        with output.progress("features", len(pool.instances)) as advance:
            found = features_of(dense, pool, advance, cache)
        chosen = select(whole, count, seed, method=method, split=split, stratify=stratify, features=found, kin=kin)
        features, bundle = found.responses, dense.digest
    report = coverage(whole, pool, chosen, features)
    if near_duplicates:
        report["near_duplicates"] = {"images": len(kin.groups), "barred": len(kin.tested)}
    choice = Choice(whole.digest, split, method, seed, stratify, bundle)
    write_subset(out, chosen, choice, report, replace=overwrite)
    _show(output, out, report)
    output.result({"subset": str(out), "method": method, "cohort": whole.digest, "digest": chosen.digest, **report})


def _show(output: Output, out: Path, report: Mapping[str, Any]) -> None:
    for column, values in report.items():
        if isinstance(values, Mapping) and column not in ("overlap_with_test", "near_duplicates"):
            rows = [
                (name or "unknown", held["images"], f"{100 * held['pool']:.1f} %", f"{100 * held['chosen']:.1f} %")
                for name, held in values.items()
            ]
            output.table(column, ("value", "images", "of the pool", "of the chosen"), rows)
    output.say(
        f"subset {out}: {report['images']} of {report['pool']} images, of {report['patients']} of "
        f"{report['pool_patients']} patients; none of the test split"
    )
    if "nearest" in report:
        output.say(
            f"of the features' variance {100 * report['nearest']:.1f} % is kept by the nearest chosen image, "
            f"{100 * report['span']:.1f} % lies in the span of the chosen"
        )
