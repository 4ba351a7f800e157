"""A cohort, or a folder of DICOM files, de-identified into a new directory, one file at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from pydicom import Dataset

from hscc_edge import durable
from hscc_edge.data.cohort import Cohort, Instance, write_cohort
from hscc_edge.data.deidentify.burned import has_text_like, header_warnings
from hscc_edge.data.deidentify.dataset import deidentify_dataset, is_deidentified
from hscc_edge.data.deidentify.lists import MALFORMED
from hscc_edge.data.deidentify.profile import EDITION, Profile
from hscc_edge.data.deidentify.report import Report
from hscc_edge.data.deidentify.values import Keyed
from hscc_edge.data.dicom import read_dataset, read_image
from hscc_edge.errors import CohortError, DicomError

Progress = Callable[[int, str], None]
# columns of a cohort's table that say what a profile may have to hide, with the option that keeps them
HELD_BY = {
    "site": "retain_institution_identity", "scanner": "retain_device_identity", "sex": "retain_patient_characteristics",
    "age_band": "retain_patient_characteristics",
}  # fmt: skip


def deidentify_cohort(
    cohort: Cohort, out: Path, profile: Profile, key: bytes, *, replace: bool = False, progress: Progress | None = None
) -> tuple[Cohort, Report]:
    """Write a cohort of de-identified copies: labels and splits stay, files get numbers in the order of a keyed hash.

    One file is in memory at a time. Nothing is written unless all files succeed.

    Raises:
        DicomError: if a file cannot be read, or says that it is de-identified already.
        StorageError: if `out` cannot be written.
    """
    report, keyed = Report(profile), Keyed(key)
    rows: dict[str, list[Instance]] = {}
    for item in cohort.instances:
        rows.setdefault(item.file, []).append(item)
    order = sorted(rows.values(), key=lambda items: keyed.uid(items[0].sop))
    made: list[Instance] = []
    with durable.new_directory(out, replace=replace) as draft:
        (draft / "dicom").mkdir()
        for number, items in enumerate(order):
            try:
                original = read_dataset(cohort.path(items[0]), pixels=True)
                result, digest = _write(draft, number, original, items[0].patient, key, report)
            except DicomError as error:
                place = 1 + cohort.instances.index(items[0])
                raise DicomError(
                    f"row {place} of the cohort's table: {_without_path(error, cohort, items[0])}"
                ) from error
            made += [_instance(item, f"dicom/{_name(number)}", result, digest, profile) for item in items]
            if progress is not None:
                progress(1, "")
        source = f"de-identified by PS3.15 {EDITION} Annex E"
        new = dataclasses.replace(
            cohort, root=out, source=source, instances=tuple(made), files=Path("."), secret=b""
        )  # fmt: skip
        report.files["written"] = len(order)
        write_cohort(draft, new, {"deidentification": [meaning for _, meaning in profile.codes]})
        durable.write_json(draft / "deidentification.json", report.to_json())
    return new, report


def deidentify_folder(
    root: Path, out: Path, profile: Profile, key: bytes, *, replace: bool = False, progress: Progress | None = None
) -> Report:
    """Write de-identified copies of every DICOM file below `root`; what cannot be done is counted and left out.

    Raises:
        CohortError: if there is no file that can be de-identified, or `out` lies in `root`.
        StorageError: if `out` cannot be written.
    """
    if not root.is_dir():
        raise CohortError(f"{root} does not exist or is no directory: give a cohort or a folder of DICOM files")
    if out.resolve().is_relative_to(root.resolve()):
        raise CohortError(f"{out} lies in {root}: give a directory outside the folder that is read")
    report, keyed = Report(profile), Keyed(key)
    with durable.new_directory(out, replace=replace) as draft:
        (draft / "dicom").mkdir()
        for path in sorted(_files(root), key=lambda path: keyed.uid(os.fspath(path))):
            try:
                original = read_dataset(path, pixels=True)
                if is_deidentified(original):
                    report.left_out["de-identified already"] += 1
                else:
                    _write(draft, report.files["written"], original, "", key, report)
                    report.files["written"] += 1
            except DicomError:
                report.left_out["not readable as DICOM"] += 1
            if progress is not None:
                progress(1, "")
        if not report.files["written"]:
            raise CohortError(
                f"{root} holds no DICOM file that can be de-identified ({dict(report.left_out)}): give original files"
            )
        durable.write_json(draft / "deidentification.json", report.to_json())
    return report


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder) / name for name in names if name != "DICOMDIR")


def _write(
    draft: Path, number: int, original: Dataset, patient: str, key: bytes, report: Report
) -> tuple[Dataset, str]:
    """The de-identified data set and the sha256 of its file, which stands in `draft` afterwards."""
    result = deidentify_dataset(original, report.profile, key, patient=patient, counts=report.rules)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result.save_as(buffer, enforce_file_format=True)
    except MALFORMED as error:
        raise DicomError(f"what is left cannot be written ({type(error).__name__}): leave the file out") from error
    content = buffer.getvalue()
    target = draft / "dicom" / _name(number)
    target.write_bytes(content)  # synced with its directory at the end
    report.note_text(result)
    _warn(result, target, report)
    return result, hashlib.sha256(content).hexdigest()


def _name(number: int) -> str:
    return f"{number:06d}.dcm"


def _warn(result: Dataset, path: Path, report: Report) -> None:
    """Note why the pixels of a written file may identify; the first frame is looked at."""
    reasons = header_warnings(result)
    if "PixelData" in result:
        try:
            if has_text_like(read_image(path).pixels):
                reasons.append("shapes like text in the pixels")
        except DicomError:
            reasons.append("the pixels were not looked at")
    report.warnings.update(reasons)
    if any(reason.endswith(("is YES", "in the pixels", "not looked at")) for reason in reasons):
        report.to_look_at.append(path.name)


def _instance(item: Instance, file: str, result: Dataset, digest: str, profile: Profile) -> Instance:
    hidden = {name: "" for name, option in HELD_BY.items() if not getattr(profile, option)}
    return dataclasses.replace(
        item,
        file=file,
        patient=str(result.PatientID),
        study=str(result.StudyInstanceUID),
        series=str(result.SeriesInstanceUID),
        sop=str(result.SOPInstanceUID),
        digest=digest,
        **hidden,
    )


def _without_path(error: DicomError, cohort: Cohort, item: Instance) -> str:
    """The error's sentence; names of files can hold names of patients."""
    return str(error).replace(str(cohort.path(item)), "the file")
