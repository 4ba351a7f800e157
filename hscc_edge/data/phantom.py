"""A synthetic cohort: valid MR Image Storage files of made-up patients, studies and series, split by patient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from hscc_edge import durable
from hscc_edge.data.anatomy import CLASSES, Head, draw_head, draw_slice
from hscc_edge.data.cohort import Cohort, Instance, write_cohort
from hscc_edge.data.made import write_instance
from hscc_edge.data.split import assign
from hscc_edge.errors import CohortError

Progress = Callable[[int, str], None]
FRACTIONS = {"val": 0.1, "test": 0.25}
MEANINGS = {
    "none": "No synthetic lesion",
    "ring": "Synthetic ring lesion",
    "blob": "Synthetic blob lesion",
    "speckle": "Synthetic speckle lesion",
}
FIELD_OF_VIEW_MM = 240.0


def write_phantom(
    out: Path,
    *,
    patients: int = 400,
    slices: int = 6,
    size: int = 128,
    seed: int = 0,
    replace: bool = False,
    progress: Progress | None = None,
) -> Cohort:
    """Write a cohort of `patients` x `slices` files; the same files for the same arguments.

    One slice is in memory at a time. The unit is the study; each patient has one class, seen in every slice.

    Raises:
        CohortError: if there are too few patients for every class in every split, or a size is out of range.
        StorageError: if `out` cannot be written.
    """
    if patients < 16 or not 1 <= slices <= 200 or not 16 <= size <= 1024:
        raise CohortError(
            f"a phantom of {patients} patients, {slices} slices, size {size} is asked for: expected at least 16 "
            "patients, 1 to 200 slices, a size from 16 to 1024"
        )
    labels = [CLASSES[index % len(CLASSES)] for index in range(patients)]
    splits = assign({str(index): label for index, label in enumerate(labels)}, FRACTIONS, seed)
    instances = []
    with durable.new_directory(out, replace=replace) as draft:
        (draft / "dicom").mkdir()
        for patient, label in enumerate(labels):
            head, split = draw_head(label, seed * 1_000_003 + patient), splits[str(patient)]
            for number in range(slices):
                instances.append(_write(draft, head, (seed, patient, number, slices), size, split))
                if progress is not None:
                    progress(1, "")
        codes = {
            label: {"value": f"PHANTOM-{label.upper()}", "scheme": "99HSCC", "meaning": MEANINGS[label]}
            for label in CLASSES
        }
        cohort = Cohort(out, "phantom", "study", CLASSES, "synthetic", codes, tuple(instances))
        write_cohort(draft, cohort, {"patients": patients, "slices": slices, "size": size, "seed": seed})
    return cohort


def _write(draft: Path, head: Head, place: tuple[int, int, int, int], size: int, split: str) -> Instance:
    seed, patient, number, slices = place
    height = (2 * (number + 0.5) / slices - 1) * 0.9
    dataset = mr_image(draw_slice(head, height, size), (seed, patient, number), height)
    return write_instance(draft, patient * slices + number, dataset, head.label, split)


def mr_image(pixels: NDArray[np.uint16], place: tuple[int, int, int], height: float) -> Dataset:
    """An MR Image (PS3.3 A.4) of 12-bit pixels.

    Args:
        place: (seed, patient, slice), from which every UID is derived.
        height: -1 to 1, the slice's place along the head.
    """
    seed, patient, number = place
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = _uid("sop", seed, patient, number)
    _set_patient(dataset, seed, patient, number)
    _set_acquisition(dataset, len(pixels), height)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    random = np.random.default_rng((seed, patient))
    low, high = np.percentile(pixels, (1, 99))
    width = max(float(high - low) * random.uniform(0.8, 1.3), 2.0)
    dataset.WindowCenter, dataset.WindowWidth = f"{float(low) + width / 2:.1f}", f"{width:.1f}"
    dataset.PixelData = pixels.astype("<u2").tobytes()
    return dataset


def _uid(level: str, *numbers: int) -> str:
    return str(generate_uid(entropy_srcs=["hscc_edge phantom", level, *(str(number) for number in numbers)]))


def _set_patient(dataset: Dataset, seed: int, patient: int, number: int) -> None:
    random = np.random.default_rng((seed, patient, 7))
    dataset.PatientName, dataset.PatientID = f"Phantom^Nr{patient:04d}", f"PHANTOM-{seed}-{patient:04d}"
    dataset.PatientBirthDate = f"{int(random.integers(1935, 2000))}0101"
    dataset.PatientSex = str(random.choice(("F", "M", "O")))
    dataset.StudyInstanceUID = _uid("study", seed, patient)
    dataset.SeriesInstanceUID = _uid("series", seed, patient)
    dataset.FrameOfReferenceUID = _uid("frame", seed, patient)
    dataset.StudyDate, dataset.StudyTime = "20260101", f"{patient % 24:02d}0000"
    dataset.StudyID, dataset.AccessionNumber = str(patient), f"A{seed}{patient:06d}"
    dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number + 1
    dataset.SeriesDescription = "Synthetic T1"


def _set_acquisition(dataset: Dataset, size: int, height: float) -> None:
    spacing = FIELD_OF_VIEW_MM / size
    dataset.Modality, dataset.BodyPartExamined, dataset.PatientPosition = "MR", "HEAD", "HFS"
    dataset.Manufacturer = "hscc_edge phantom"
    dataset.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
    dataset.MRAcquisitionType, dataset.EchoTrainLength = "2D", 1
    dataset.RepetitionTime, dataset.EchoTime = "500", "15"
    dataset.SliceThickness = "5"
    dataset.PixelSpacing = [f"{spacing:.6g}"] * 2
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    corner = f"{-FIELD_OF_VIEW_MM / 2 + spacing / 2:.6g}"
    dataset.ImagePositionPatient = [corner, corner, f"{height * 60:.6g}"]
