"""Class folders of PNG or JPEG -> a cohort of DICOM Secondary Captures whose headers say what they were made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from hscc_edge import durable
from hscc_edge.data.cohort import Cohort, Instance, write_cohort
from hscc_edge.data.labels import SPLIT_FOLDERS
from hscc_edge.data.made import write_instance
from hscc_edge.data.split import assign
from hscc_edge.errors import CohortError, DicomError

Progress = Callable[[int, str], None]
SUFFIXES = {".png", ".jpg", ".jpeg"}


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture file, its class folder's name, and its split folder's, "" if there is none."""

    path: Path
    label: str
    split: str


def import_images(
    root: Path,
    out: Path,
    *,
    name: str | None = None,
    drop_duplicates: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
    replace: bool = False,
    progress: Progress | None = None,
) -> Cohort:
    """Import `root`/[SPLIT/]CLASS/picture; each picture becomes a patient of its own, the unit is the image.

    One picture is in memory at a time. With `drop_duplicates`, of pictures with equal decoded pixels only the first
    is kept, those in training before those in test: the test set then holds nothing that was trained on.

    Args:
        test_fraction: of each class, where there are no split folders.

    Raises:
        CohortError: if `root` holds no such pictures or fewer than two classes.
        DicomError: if a picture cannot be decoded.
        StorageError: if `out` cannot be written.
    """
    pictures = find_pictures(root)
    splits = _splits(pictures, test_fraction, seed)
    seen: set[str] = set()
    instances: list[Instance] = []
    with durable.new_directory(out, replace=replace) as draft:
        (draft / "dicom").mkdir()
        for picture, split in zip(pictures, splits, strict=True):
            pixels = _decode(picture.path)
            digest = hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()
            if not (drop_duplicates and digest in seen):
                instances.append(_write(draft, picture, split, pixels, len(instances)))
            seen.add(digest)
            if progress is not None:
                progress(1, "")
        cohort = _cohort(out, name or root.name, instances)
        write_cohort(draft, cohort, {"pictures": len(pictures), "dropped_duplicates": len(pictures) - len(instances)})
    return cohort


def has_pictures(root: Path) -> bool:
    """Whether there is any picture in [SPLIT/]CLASS/."""
    return next(_walk(root), None) is not None


def find_pictures(root: Path) -> list[Picture]:
    """Every picture under `root`, training first, in order of path.

    Raises:
        CohortError: if there are none, or fewer than two classes.
    """
    if not root.is_dir():
        raise CohortError(f"{root} does not exist or is no directory: give a folder with one folder a class")
    found = sorted(_walk(root), key=lambda picture: [*SPLIT_FOLDERS.values(), ""].index(picture.split))
    classes = {picture.label for picture in found}
    if len(classes) < 2:
        raise CohortError(
            f"{root} holds {len(found)} pictures in {len(classes)} class folders: expected CLASS/*.png or *.jpg, two "
            "classes or more"
        )
    return found


def _walk(root: Path) -> Iterator[Picture]:
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        split = SPLIT_FOLDERS.get(folder.name.lower(), "")
        for classes in sorted(path for path in folder.iterdir() if path.is_dir()) if split else [folder]:
            for path in sorted(classes.iterdir()):
                if path.suffix.lower() in SUFFIXES:
                    yield Picture(path, classes.name, split)


def _splits(pictures: list[Picture], test_fraction: float, seed: int) -> list[str]:
    if any(picture.split for picture in pictures):
        return [picture.split or "train" for picture in pictures]
    if not 0 <= test_fraction < 1:
        raise CohortError(f"the test fraction is {test_fraction}: expected a number from 0 to below 1")
    found = assign({str(index): picture.label for index, picture in enumerate(pictures)}, {"test": test_fraction}, seed)
    return [found[str(index)] for index in range(len(pictures))]


def _decode(path: Path) -> NDArray[np.uint8]:
    """(H, W), or (H, W, 3) if the colours differ anywhere."""
    try:
        with PIL.Image.open(path) as image:
            if image.mode == "L":
                return np.asarray(image)
            rgb = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DicomError(f"{path} cannot be decoded ({type(error).__name__}): remove it or fetch it again") from error
    grey = bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all())
    return np.ascontiguousarray(rgb[..., 0]) if grey else rgb


def _write(draft: Path, picture: Picture, split: str, pixels: NDArray[np.uint8], number: int) -> Instance:
    source = hashlib.sha256(picture.path.read_bytes()).hexdigest()
    jpeg = picture.path.suffix.lower() != ".png"
    dataset = secondary_capture(pixels, source, jpeg=jpeg, number=number)
    return write_instance(draft, number, dataset, picture.label, split)


def secondary_capture(pixels: NDArray[np.uint8], source: str, *, jpeg: bool, number: int) -> Dataset:
    """A Secondary Capture Image (PS3.3 A.8.1) of 8-bit pixels; `source` is the sha256 of the picture file."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    for level in ("Study", "Series", "SOP"):
        setattr(dataset, f"{level}InstanceUID", generate_uid(entropy_srcs=[level, source, str(number)]))
    dataset.PatientID = f"PICTURE-{number:06d}"
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                    "AccessionNumber", "ReferringPhysicianName", "Laterality", "PatientOrientation"):  # fmt: skip
        setattr(dataset, keyword, "")
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.Modality, dataset.ConversionType = "OT", "WSD"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.DerivationDescription = f"Converted from a picture file, sha256 {source}"
    if jpeg:
        dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
        dataset.LossyImageCompressionRatio = "1"
    _set_pixels(dataset, pixels)
    return dataset


def _set_pixels(dataset: Dataset, pixels: NDArray[np.uint8]) -> None:
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    raw = pixels.tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)


def _cohort(out: Path, name: str, instances: list[Instance]) -> Cohort:
    classes = tuple(sorted({item.label for item in instances}))
    codes = {label: {"value": label.upper()[:16], "scheme": "99HSCC", "meaning": label[:64]} for label in classes}
    return Cohort(out, name, "image", classes, "pictures in class folders", codes, tuple(instances))
