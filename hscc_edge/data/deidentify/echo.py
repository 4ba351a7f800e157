"""The patient's own names and numbers, looked for in the text that no rule removes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydicom import DataElement, Dataset

from hscc_edge.data.deidentify.lists import MALFORMED

_NUMBERED = (
    "PatientID OtherPatientIDs AccessionNumber AdmissionID MedicalRecordLocator PatientTelephoneNumbers StudyID "
    "PlacerOrderNumberImagingServiceRequest FillerOrderNumberImagingServiceRequest RequestedProcedureID"
)
NUMBERED = frozenset(_NUMBERED.split())
_PLACEHOLDERS = (
    "anon anonym anonymous anonymized dummy doctor doe med name nobody noname none null operator other patient prof "
    "test tech unknown user"
)
PLACEHOLDERS = frozenset(_PLACEHOLDERS.split())
SEARCHED = frozenset(["AE", "CS", "LO", "LT", "SH", "ST", "UC", "UN", "UR", "UT"])
# coded strings without which there is no image
STRUCTURAL = frozenset(["SpecificCharacterSet", "ImageType", "Modality", "PhotometricInterpretation", "ValueType"])


def identity_pattern(dataset: Dataset) -> re.Pattern[str] | None:
    """What matches any name of a person or number of the patient that a data set holds; None if it holds none.

    Names of three letters or more and numbers of four characters or more, as whole words, in any case; longer numbers
    within words too.
    """
    tokens = set(_tokens(dataset))
    if not tokens:
        return None
    whole = "|".join(sorted(map(re.escape, tokens)))
    within = "|".join(sorted(re.escape(token) for token in tokens if len(token) >= 6 and any(map(str.isdigit, token))))
    return re.compile(rf"(?<![^\W_])(?:{whole})(?![^\W_])" + (f"|{within}" if within else ""), re.IGNORECASE)


def _tokens(dataset: Dataset) -> Iterator[str]:
    for element in _elements(dataset):
        values = element.value if element.VM > 1 else [element.value]
        if element.VR == "PN":
            for word in re.findall(r"[^\W\d_]{3,}", " ".join(map(str, values))):
                if word.lower() not in PLACEHOLDERS:
                    yield word
        elif element.keyword in NUMBERED:
            yield from (text for value in values if len(text := str(value).strip()) >= 4 and _is_number(text))


def _is_number(text: str) -> bool:
    return any(map(str.isdigit, text))


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    for tag in sorted(dataset.keys()):
        try:
            element = dataset[tag]
        except MALFORMED:
            continue
        if element.VR == "SQ":
            for item in element.value:
                yield from _elements(item)
        elif element.value:
            yield element


def is_echo(element: DataElement, pattern: re.Pattern[str] | None) -> bool:
    """Whether an element's text holds one of the patient's names or numbers."""
    if pattern is None or element.VR not in SEARCHED or element.keyword in STRUCTURAL:
        return False
    values = element.value if element.VM > 1 else [element.value]
    return any(pattern.search(value.decode("latin-1") if isinstance(value, bytes) else str(value)) for value in values)
