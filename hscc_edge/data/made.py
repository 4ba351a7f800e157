"""A DICOM file that the product makes itself, and its row of the cohort's table."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydicom.dataset import Dataset

from hscc_edge.data.cohort import Instance
from hscc_edge.data.columns import columns_of
from hscc_edge.data.facts import facts_of


def write_instance(draft: Path, number: int, dataset: Dataset, label: str, split: str) -> Instance:
    """Write dicom/NUMBER.dcm into a draft of a cohort, and describe it."""
    path = draft / "dicom" / f"{number:06d}.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return Instance(
        file=f"dicom/{path.name}",
        patient=dataset.PatientID,
        study=dataset.StudyInstanceUID,
        series=dataset.SeriesInstanceUID,
        sop=dataset.SOPInstanceUID,
        label=label,
        split=split,
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
        **columns_of(facts_of(dataset)),
    )
