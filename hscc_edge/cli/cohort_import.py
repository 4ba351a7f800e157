"""`hscc-edge cohort import`: a folder of DICOM files, or class folders of pictures, becomes a cohort."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hscc_edge.cli.output import JsonFlag, Output
from hscc_edge.errors import InputError

if TYPE_CHECKING:
    from hscc_edge.data.archive import Imported
    from hscc_edge.data.cohort import Cohort
    from hscc_edge.data.cohort_spec import Spec
    from hscc_edge.data.scan import ScanSummary

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands there.")]
PICTURES, DICOM = "pictures", "dicom"


def import_(
    directory: Annotated[Path, typer.Argument(help="Folder of DICOM files, or [SPLIT/]CLASS/picture.png or .jpg")],
    out: Annotated[Path, typer.Argument(help="New cohort directory.")],
    spec: Annotated[Path | None, typer.Option(help="TOML: unit, labels, rules, split, codes.")] = None,
    labels: Annotated[str | None, typer.Option(help="LABELS.csv, LABELS.xlsx, folders or reports (DICOM SR).")] = None,
    match: Annotated[str, typer.Option(help="A label's key: sop, series, study, accession, patient.")] = "study",
    key: Annotated[str, typer.Option(help="The table's column with the keys.")] = "key",
    column: Annotated[str, typer.Option(help="The table's column with the labels.")] = "label",
    unit: Annotated[str, typer.Option(help="What one decision is about: image, series or study.")] = "study",
    index: Annotated[Path | None, typer.Option(help="Index of the files, kept; by default OUT.index.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes that read; one a core by default.")] = None,
    name: Annotated[str | None, typer.Option(help="The cohort's name; the directory's by default.")] = None,
    drop_duplicates: Annotated[bool, typer.Option(help="Of equal pictures keep only the first.")] = False,
    test_fraction: Annotated[float, typer.Option(help="Test share, where nothing says the split.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of that split.")] = 0,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Turn a folder as it came out of a PACS into a cohort: files stay where they are, what is left out is listed.

    Class folders of pictures become DICOM files in the cohort, whose headers say that they are derived.

    Example: hscc-edge cohort import pacs cohort --labels labels.csv --match accession
    """  # fmt: skip
    output = Output(as_json)
    if _holds(directory, spec, labels) == PICTURES:
        cohort = _import_pictures(output, directory, out, name, drop_duplicates, test_fraction, seed, overwrite)
        show(output, out, cohort)
        return
    rules = _spec(spec, labels, match, key, column, unit, test_fraction, seed)
    rules = dataclasses.replace(rules, name=name) if name else rules
    index = index or out.with_name(out.name + ".index")
    summary = _scan(output, directory, index, jobs)
    try:
        found = _import_archive(output, directory, index, out, rules, overwrite)
    finally:
        if not summary.kinds.get("image"):
            index.unlink(missing_ok=True)
    _show_imported(output, out, summary, found)


def _holds(directory: Path, spec: Path | None, labels: str | None) -> str:
    """Pictures in class folders, unless a spec or labels are given or there are none."""
    from hscc_edge.data.images import has_pictures

    if not directory.is_dir():
        raise InputError(f"{directory} does not exist or is no directory: give the folder with the files")
    return PICTURES if spec is None and labels is None and has_pictures(directory) else DICOM


def _spec(
    path: Path | None, labels: str | None, match: str, key: str, column: str, unit: str, test_fraction: float, seed: int
) -> Spec:
    from hscc_edge.data.cohort_spec import DEFAULT_SPLIT, parse_spec, read_spec

    if path is not None:
        if labels is not None:
            raise InputError(f"both --spec {path} and --labels are given: name the labels in the spec")
        return read_spec(path)
    if labels is None:
        raise InputError(
            "no labels are given, and folders of DICOM files may be named after patients: say --labels with a table, "
            "folders or reports, or --spec"
        )
    found = parse_spec({"unit": unit, "labels": {"source": labels, "match": match, "key": key, "column": column}})
    fractions = {**DEFAULT_SPLIT.fractions, "test": test_fraction}
    return dataclasses.replace(found, split=dataclasses.replace(found.split, fractions=fractions, seed=seed))


def _scan(output: Output, directory: Path, index: Path, jobs: int | None) -> ScanSummary:
    from hscc_edge.data.scan import Progress, scan

    with output.progress("scan") as advance:
        done = 0

        def report(progress: Progress) -> None:
            nonlocal done
            advance(progress.files - done, f"of {progress.due_files} files, {progress.size_bytes >> 20} MiB")
            done = progress.files

        return scan(directory, index, jobs=jobs, progress=report)


def _import_archive(output: Output, directory: Path, index: Path, out: Path, spec: Spec, overwrite: bool) -> Imported:
    from hscc_edge.data.archive import import_archive

    with output.progress("import"):
        return import_archive(directory, index, out, spec, replace=overwrite)


def _import_pictures(
    output: Output, directory: Path, out: Path, name: str | None, drop: bool, test_fraction: float, seed: int,
    overwrite: bool,
) -> Cohort:  # fmt: skip
    from hscc_edge.data.images import import_images

    with output.progress("import") as advance:
        return import_images(
            directory,
            out,
            name=name,
            drop_duplicates=drop,
            test_fraction=test_fraction,
            seed=seed,
            replace=overwrite,
            progress=advance,
        )


def _show_imported(output: Output, out: Path, summary: ScanSummary, found: Imported) -> None:
    output.say(
        f"{summary.files} files scanned, {summary.read} of them read ({summary.unchanged} unchanged) in "
        f"{summary.seconds:.1f} s"
    )
    if found.left_out:
        output.table(f"left out (see {out / 'left-out.csv'})", ("reason", "files"), list(found.left_out.items()))
    if found.unmatched_labels:
        output.say(f"labels that no image has: {found.unmatched_labels}")
    show(
        output,
        out,
        found.cohort,
        scanned=summary.files,
        read=summary.read,
        left_out=dict(found.left_out),
        unmatched_labels=found.unmatched_labels,
    )


def show(output: Output, out: Path, cohort: Cohort, **more: object) -> None:
    """One line, or the verb's JSON, about a cohort."""
    counts = Counter(item.split for item in cohort.instances)
    patients = len({item.patient for item in cohort.instances})
    output.say(f"cohort {out}: {len(cohort.instances)} images of {patients} patients, {dict(counts)}")
    output.result(
        {"cohort": str(out), "images": len(cohort.instances), "patients": patients, "splits": dict(counts),
         "digest": cohort.digest, **more}
    )  # fmt: skip
