"""What a file's headers say that subgroups, inclusion rules and searches for shortcuts need.

The birth date, the name and the hour of the study are never kept. What is kept is still as confidential as the file: a
site is named as the file names it, and free text (series description, protocol) may say anything.
"""

from __future__ import annotations

import datetime
import logging
import math
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue

from hscc_edge.data.dicom import FAULTS
from hscc_edge.data.pseudonym import pseudonym

# The limits 2, 12 and 18 are those of ICH E11, 65 that of ICH E7; each band ends below its number of years.
AGE_BANDS = (("0-1", 2), ("2-11", 12), ("12-17", 18), ("18-39", 40), ("40-64", 65), ("65-79", 80), ("80+", 131))
MALFORMED = (
    *FAULTS, ArithmeticError, AssertionError, BytesLengthException, InvalidDicomError, LookupError, struct.error,
    zlib.error,
)  # fmt: skip
OBLIQUE_BELOW = 0.8
MAX_TEXT = 1024
NO_AGENT = {"NO", "NONE", "N", "WITHOUT", "NEGATIVE", "0"}
DATES = ("StudyDate", "AcquisitionDate", "SeriesDate", "ContentDate")
GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
KEYWORDS = (
    "PatientSex", "PatientAge", "PatientBirthDate", *DATES, "InstitutionName", "Manufacturer", "ManufacturerModelName",
    "StationName", "DeviceSerialNumber", "MagneticFieldStrength", "Modality", "BodyPartExamined",
    "AnatomicRegionSequence", "ImageLaterality", "Laterality", "FrameLaterality", "SeriesDescription", "ProtocolName",
    "ContrastBolusAgent", "ContrastBolusAgentSequence", "EchoTime", "EffectiveEchoTime", "RepetitionTime",
    "ScanningSequence", "EchoPulseSequence", "SequenceVariant", "KVP", "ConvolutionKernel", "SliceThickness",
    "ImageOrientationPatient", "ImagePositionPatient", "SliceLocation", "ImageType", "Rows", "Columns",
    "NumberOfFrames", "BitsStored", "PhotometricInterpretation", *GROUPS,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """Headers as facts. A text that is absent or malformed is "", a number None, a list ().

    Attributes:
        sex: M, F, O or "" (PS3.3 C.7.1.1).
        age_years: completed years at the study.
        age_band: a name of AGE_BANDS.
        site: InstitutionName as the file gives it; confidential.
        scanner: Manufacturer and ManufacturerModelName.
        station: pseudonym of StationName, or else of DeviceSerialNumber.
        body_part: BodyPartExamined, or else the meaning of the anatomic region's code; in capitals.
        laterality: L, R, B, U or "" (of the image, or else of the series).
        contrast: whether an agent is named; many sites leave it out, so that False proves nothing.
        orientation: axial, sagittal, coronal, oblique, or "" where the file gives no plane (PS3.3 C.7.6.2).
        slice_position_mm: along the plane's normal, or else SliceLocation.
        frames: 1 where the file does not say.
        study_year: the year alone.
        malformed: keywords whose value could not be read, sorted.
    """

    sex: str
    age_years: int | None
    age_band: str
    site: str = field(repr=False)
    scanner: str
    station: str
    field_strength_t: float | None
    modality: str
    body_part: str
    laterality: str
    series_description: str = field(repr=False)
    protocol: str = field(repr=False)
    contrast: bool
    echo_time_ms: float | None
    repetition_time_ms: float | None
    scanning_sequence: tuple[str, ...]
    sequence_variant: tuple[str, ...]
    kvp: float | None
    convolution_kernel: tuple[str, ...]
    slice_thickness_mm: float | None
    orientation: str
    slice_position_mm: float | None
    image_type: tuple[str, ...]
    rows: int | None
    columns: int | None
    frames: int | None
    bits_stored: int | None
    photometric: str
    transfer_syntax: str
    study_year: int | None
    malformed: tuple[str, ...]


def facts_of(dataset: Dataset, key: bytes = b"") -> Facts:
    """The facts of a data set; of an enhanced multi-frame object those of its first frame (PS3.3 C.7.6.16).

    No value raises: one that cannot be read is left out and its keyword counted in `malformed`.

    Args:
        key: of the station's pseudonym; without one, whoever can guess the station's name can find it.
    """
    with quiet():
        return _facts(_Source(dataset), dataset, key)


@contextmanager
def quiet() -> Iterator[None]:
    """No warning and no log line of pydicom's: they quote the values that they complain about."""
    log = logging.getLogger("pydicom")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def age_band(years: int | None) -> str:
    """The name of the band; "" for None, for negative ages and those of 131 years and more."""
    if years is None or years < 0:
        return ""
    return next((name for name, end in AGE_BANDS if years < end), "")


def orientation_of(cosines: Sequence[float]) -> str:
    """The plane of (row, column) direction cosines (PS3.3 C.7.6.2.1.1): axial, sagittal, coronal or oblique.

    A plane has a name if the cosine of its normal with an axis of the patient is at least 0.8 (37 degrees).

    Raises:
        ValueError: if they are not two unit vectors, perpendicular to within 0.01 or so.
    """
    normal = _normal(cosines)
    size, name = max(zip(map(abs, normal), ("sagittal", "coronal", "axial"), strict=True))
    return name if size >= OBLIQUE_BELOW else "oblique"


def _normal(cosines: Sequence[float]) -> tuple[float, float, float]:
    if len(cosines) != 6:
        raise ValueError(f"{len(cosines)} direction cosines: expected 6")
    row, column = cosines[:3], cosines[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    across = sum(a * b for a, b in zip(row, column, strict=True))
    if not (all(abs(length - 1) < 0.02 for length in lengths) and abs(across) < 0.02):
        raise ValueError("direction cosines that are not perpendicular unit vectors")
    (a, b, c), (d, e, f) = row, column
    return b * f - c * e, c * d - a * f, a * e - b * d


@dataclass(slots=True)
class _Source:
    """Where values are looked up, in order, and which were malformed."""

    dataset: Dataset
    parts: list[Dataset] = field(default_factory=list)
    malformed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.parts = [self.dataset]
        for keyword in GROUPS:
            self.parts.extend(self.read(keyword, lambda items: list(_macros(items[0]))) or ())

    def read(self, keyword: str, convert: Callable[[Any], Any]) -> Any:
        """The converted value from the first part that has one; None if there is none, or it is malformed."""
        for part in self.parts:
            try:
                value = part.get(keyword)
                if not (value is None or (hasattr(value, "__len__") and len(value) == 0)):
                    return convert(value)
            except MALFORMED:
                self.malformed.add(keyword)
                return None
        return None

    def text(self, *keywords: str) -> str:
        """The first of the keywords that has a value: its first value as clean text."""
        return next(filter(None, (self.read(keyword, lambda value: clean(_first(value))) for keyword in keywords)), "")

    def texts(self, *keywords: str) -> tuple[str, ...]:
        """All values as clean text, without empty ones at the end."""
        return next(filter(None, (self.read(keyword, _texts) for keyword in keywords)), ())

    def number(self, *keywords: str, low: float = 0.0, high: float = 1e6) -> float | None:
        """The first of the keywords that has a number in [low, high]."""
        found = (self.read(keyword, lambda value: _bounded(_first(value), low, high)) for keyword in keywords)
        return next((value for value in found if value is not None), None)

    def count(self, keyword: str, high: int) -> int | None:
        """A whole number from 1 to `high`."""
        value: int | None = self.read(keyword, lambda value: _whole(_bounded(_first(value), 1, high)))
        return value


def _facts(source: _Source, dataset: Dataset, key: bytes) -> Facts:
    years = source.read("PatientAge", _age)
    dates = [source.read(keyword, _date) for keyword in DATES]
    study = next(filter(None, dates), None)
    if years is None:
        years = source.read("PatientBirthDate", lambda value: _years(_date(value), study))
    station = source.text("StationName", "DeviceSerialNumber")
    plane = source.read("ImageOrientationPatient", _plane)
    return Facts(
        sex=source.read("PatientSex", lambda value: _one_of(value, "MFO")) or "",
        age_years=years,
        age_band=age_band(years),
        site=source.text("InstitutionName"),
        scanner=" ".join(filter(None, (source.text("Manufacturer"), source.text("ManufacturerModelName")))),
        station=pseudonym(station, key) if station else "",
        field_strength_t=source.read("MagneticFieldStrength", _tesla),
        modality=source.text("Modality"),
        body_part=_body_part(source).upper(),
        laterality=_laterality(source),
        series_description=source.text("SeriesDescription"),
        protocol=source.text("ProtocolName"),
        contrast=bool(source.read("ContrastBolusAgent", _agent) or source.read("ContrastBolusAgentSequence", len)),
        echo_time_ms=source.number("EchoTime", "EffectiveEchoTime"),
        repetition_time_ms=source.number("RepetitionTime"),
        scanning_sequence=source.texts("ScanningSequence", "EchoPulseSequence"),
        sequence_variant=source.texts("SequenceVariant"),
        kvp=source.number("KVP"),
        convolution_kernel=source.texts("ConvolutionKernel"),
        slice_thickness_mm=source.number("SliceThickness"),
        orientation=plane or "",
        slice_position_mm=_position(source),
        image_type=source.texts("ImageType"),
        rows=source.count("Rows", 1 << 16),
        columns=source.count("Columns", 1 << 16),
        frames=source.count("NumberOfFrames", 1 << 31) if source.read("NumberOfFrames", str) else 1,
        bits_stored=source.count("BitsStored", 64),
        photometric=source.text("PhotometricInterpretation"),
        transfer_syntax=_transfer_syntax(source, dataset),
        study_year=study.year if study else None,
        malformed=tuple(sorted(source.malformed)),
    )


def clean(value: Any) -> str:
    """Text without padding, runs of blanks and unprintable characters, so that it can stand in any table.

    Raises:
        ValueError: if it is longer than 1024 characters, which no value that we ask for may be (PS3.5 6.2), or bytes.
    """
    if isinstance(value, bytes):
        raise ValueError("bytes: expected text")
    text = " ".join(str(value).replace("\0", " ").split())
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text)} characters: expected at most {MAX_TEXT}")
    return text if text.isprintable() else "".join(filter(str.isprintable, text))


def _plane(value: Any) -> str:
    """`orientation_of` for the value of an attribute."""
    return orientation_of([float(number) for number in value])


def _macros(item: Dataset) -> Iterator[Dataset]:
    """The first item of every macro of one functional group item."""
    for element in item:
        if element.VR == "SQ" and element.value:
            yield element.value[0]


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple, MultiValue)) else value


def _texts(value: Any) -> tuple[str, ...]:
    values = [clean(item) for item in value] if isinstance(value, (list, tuple, MultiValue)) else [clean(value)]
    while values and not values[-1]:
        values.pop()
    return tuple(values)


def _bounded(value: Any, low: float, high: float) -> float | None:
    if value is None or value == "":
        return None
    number = float(value)
    if not low <= number <= high:  # also false for NaN
        raise ValueError(f"{number}: expected {low} to {high}")
    return number


def _whole(number: float | None) -> int | None:
    if number is not None and number != int(number):
        raise ValueError(f"{number}: expected a whole number")
    return None if number is None else int(number)


def _tesla(value: Any) -> float | None:
    """Tesla (PS3.3 C.8.3.1); old scanners wrote gauss, which no field for patients can be mistaken for."""
    number = _bounded(_first(value), 0, 1e6)
    number = number / 1e4 if number is not None and number > 100 else number
    return _bounded(number, 1e-6, 25)


def _one_of(value: Any, letters: str) -> str:
    text = clean(_first(value)).upper()
    if len(text) > 1 or text not in letters:
        raise ValueError(f"not one of {letters}")
    return text


def _laterality(source: _Source) -> str:
    keywords = ("ImageLaterality", "FrameLaterality", "Laterality")
    found = (source.read(keyword, lambda value: _one_of(value, "LRBU")) for keyword in keywords)
    return next(filter(None, found), "")


def _body_part(source: _Source) -> str:
    named = source.text("BodyPartExamined")
    return named or source.read("AnatomicRegionSequence", lambda items: clean(items[0].get("CodeMeaning") or "")) or ""


def _agent(value: Any) -> bool:
    text = clean(_first(value)).upper()
    return bool(text) and text not in NO_AGENT


def _age(value: Any) -> int | None:
    """Completed years of an age string (PS3.5 6.2, AS)."""
    text = clean(_first(value)).upper()
    if not text:
        return None
    found = re.fullmatch(r"(\d{1,3})([DWMY])", text, re.ASCII)
    if not found:
        raise ValueError("not an age")
    number, unit = int(found[1]), found[2]
    return _plausible({"D": number // 365, "W": number * 7 // 365, "M": number // 12, "Y": number}[unit])


def _date(value: Any) -> datetime.date | None:
    """A date (PS3.5 6.2, DA); also with the dots of ACR-NEMA."""
    text = clean(_first(value)).replace(".", "")
    if not text:
        return None
    if not re.fullmatch(r"\d{8}", text, re.ASCII):
        raise ValueError("not a date")
    return datetime.date(int(text[:4]), int(text[4:6]), int(text[6:]))


def _years(birth: datetime.date | None, study: datetime.date | None) -> int | None:
    if birth is None or study is None:
        return None
    before = (study.month, study.day) < (birth.month, birth.day)
    return _plausible(study.year - birth.year - before)


def _plausible(years: int) -> int:
    if not 0 <= years < AGE_BANDS[-1][1]:
        raise ValueError(f"an age of {years} years")
    return years


def _position(source: _Source) -> float | None:
    """The projection of ImagePositionPatient on the plane's normal, mm (PS3.3 C.7.6.2.1.1)."""
    normal = source.read("ImageOrientationPatient", lambda value: _normal([float(number) for number in value]))
    place = source.read("ImagePositionPatient", _place)
    if normal is None or place is None:
        return source.number("SliceLocation", low=-1e6)
    return float(sum(a * b for a, b in zip(normal, place, strict=True)))


def _place(value: Any) -> list[float]:
    numbers = [_bounded(number, -1e6, 1e6) for number in value]
    known = [number for number in numbers if number is not None]
    if not len(numbers) == len(known) == 3:
        raise ValueError(f"{len(known)} coordinates: expected 3")
    return known


def _transfer_syntax(source: _Source, dataset: Dataset) -> str:
    try:
        return clean(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID") or "")
    except MALFORMED:
        source.malformed.add("TransferSyntaxUID")
        return ""
