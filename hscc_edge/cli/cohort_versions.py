"""`hscc-edge cohort split | clean | lock | diff | report`: what a cohort's figures stand on, and how it changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.cohort_import import Overwrite, show
from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.data.cohort import Cohort

CohortArgument = Annotated[Path, typer.Argument(help="Cohort directory.")]


def split(
    cohort: CohortArgument,
    out: Annotated[Path | None, typer.Option(help="New cohort directory; by default in place.")] = None,
    val: Annotated[float, typer.Option(help="Share of the patients in val.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the patients in test.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Another seed, another split.")] = 0,
    stratify: Annotated[str, typer.Option(help="Columns whose values keep their shares, with commas.")] = "label,site",
    test_site: Annotated[list[str] | None, typer.Option(help="A site that is wholly test; may be repeated.")] = None,
    groups: Annotated[Path | None, typer.Option(help="CSV patient,group of patients who stay together.")] = None,
    together: Annotated[bool, typer.Option("--together", help="Keep patients together who share pictures.")] = False,
    afresh: Annotated[bool, typer.Option("--afresh", help="Forget the split that there is.")] = False,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Split a cohort by patient; patients who have a split keep it unless --afresh.

    With --together no picture stands, in another size, window or orientation, on two sides.

    Example: hscc-edge cohort split cohort --test 0.25 --test-site "North Hospital" --afresh
    """  # fmt: skip
    from hscc_edge.data.cohort import read_cohort, rewrite_cohort
    from hscc_edge.data.split import SplitRule, read_groups, split_cohort

    if together and groups:
        raise InputError(f"both --together and --groups {groups} are given: give one of them")
    output, found = Output(as_json), read_cohort(cohort)
    alike = _alike(output, found) if together else {}
    rule = SplitRule(
        {"val": val, "test": test},
        seed=seed,
        stratify=tuple(filter(None, stratify.split(","))),
        test_sites=tuple(test_site or ()),
        groups=read_groups(groups) if groups else alike,
    )
    result = split_cohort(found, rule, afresh=afresh)
    target = rewrite_cohort(result, out or cohort, replace=overwrite)
    show(output, target.root, target)


def _alike(output: Output, cohort: Cohort) -> dict[str, str]:
    from hscc_edge.data.leakage import check_cohort, patients_together

    with output.progress("near duplicates", len(cohort.instances)) as advance:
        return patients_together(check_cohort(cohort, advance, shortcuts=False))


def lock(
    cohort: CohortArgument,
    override: Annotated[str, typer.Option(help="Lock it in spite of its faults, and keep this reason.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes that read and compare.")] = 1,
    as_json: JsonFlag = False,
) -> None:
    """Check a cohort and lock its tables: a locked cohort whose labels, splits or files change is refused.

    Exit code 1 if it has faults that spoil figures and no --override.

    Example: hscc-edge cohort lock cohort
    """
    from datetime import datetime, timezone

    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.data.leakage import check_cohort
    from hscc_edge.data.lock import faults_of, lock_cohort

    output, found = Output(as_json), read_cohort(cohort, locked=False)
    with output.progress("check", len(found.instances)) as advance:
        findings = check_cohort(found, progress=advance, jobs=jobs)
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    check = findings.to_json()
    made = lock_cohort(found, check, faults_of(check), override, created)
    output.say(f"locked {cohort}: {made.images} images, digest {made.digest[:16]}, {len(made.overridden)} overridden")
    output.result({"cohort": str(cohort), "digest": made.digest, "overridden": list(made.overridden)})


def diff(
    before: Annotated[Path, typer.Argument(help="Cohort directory.")],
    after: Annotated[Path, typer.Argument(help="Cohort directory of a later version.")],
    as_json: JsonFlag = False,
) -> None:
    """Say what changed between two versions of a cohort.

    Example: hscc-edge cohort diff cohort-2025 cohort-2026
    """
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.data.difference import difference

    output = Output(as_json)
    found = difference(read_cohort(before, locked=False), read_cohort(after, locked=False))
    rows: list[tuple[str, int]] = [("added", found.added), ("removed", found.removed), ("unchanged", found.unchanged)]
    rows += [(f"another {column}", count) for column, count in found.changed.items()]
    plain = found.to_json()
    for kind in ("moved", "relabelled"):
        pairs = plain[kind]
        rows += [(f"{kind} {pair}", count) for pair, count in pairs.items()] if isinstance(pairs, dict) else []
    output.table(f"{before} -> {after}", ("images", "count"), rows)
    if found.to_test:
        output.say(f"{found.to_test} images of train or val are test now: do not test what was trained before on them")
    output.result(plain)


def report(
    cohort: CohortArgument,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("cohort.html"),
    check: Annotated[bool, typer.Option(help="Check the cohort for the page; it says if it was not.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Write a page on a cohort: counts, splits, histograms, a contact sheet, faults with what to do, subgroups.

    A cohort that is locked was checked then: the page shows that check.

    Example: hscc-edge cohort report cohort --out cohort.html
    """
    import platform
    from datetime import datetime, timezone

    import hscc_edge
    from hscc_edge import durable
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.data.cohort_report import render
    from hscc_edge.data.leakage import check_cohort
    from hscc_edge.data.lock import read_lock

    output, found = Output(as_json), read_cohort(cohort)
    lock = read_lock(cohort)
    checked = dict(lock.check) if lock else None
    if check and not lock:
        with output.progress("check", len(found.instances)) as advance:
            checked = check_cohort(found, progress=advance).to_json()
    conditions = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "hscc_edge": hscc_edge.__version__,
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }
    durable.write_text(out, render(found, checked, conditions))
    output.say(f"report {out}{' (not checked)' if checked is None else ''}")
    output.result({"report": str(out), "images": len(found.instances), "checked": checked is not None})


def clean(
    cohort: CohortArgument,
    out: Annotated[Path, typer.Argument(help="New cohort directory, over the same files.")],
    jobs: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = 1,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Write the cohort without leaks: of equal and near pictures in several splits, those in val and test go.

    What can be trained on stays as it is; what is judged on holds nothing that was trained on.

    Example: hscc-edge cohort clean cohort cohort-clean
    """
    from hscc_edge.data.cohort import read_cohort, rewrite_cohort
    from hscc_edge.data.leakage import check_cohort, without_leaks

    output, found = Output(as_json), read_cohort(cohort)
    with output.progress("check", len(found.instances)) as advance:
        findings = check_cohort(found, advance, shortcuts=False, jobs=jobs)
    rest = rewrite_cohort(without_leaks(found, findings), out, replace=overwrite)
    dropped = len(found.instances) - len(rest.instances)
    output.say(f"{dropped} images dropped")
    show(output, out, rest, dropped=dropped)
