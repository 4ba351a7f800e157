"""What every DICOM form of a result shares: its UID, the patient and study that it carries, its file.

UIDs follow from the inputs, the model, its preprocessing, the template's version and the report before, so that the
same work gives the same report.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from io import BytesIO

import pydicom
from pydicom.uid import UID, EnhancedSRStorage

from hscc_edge.bundle import Bundle
from hscc_edge.data.preprocess import REVISION
from hscc_edge.errors import BundleError
from hscc_edge.serve.results.evaluation import LONGEST_VALUE
from hscc_edge.serve.results.result import references

TEMPLATE_VERSION = "2"
TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
CARRIED = (
    *TYPE_2, "IssuerOfPatientID", "IssuerOfPatientIDQualifiersSequence", "TypeOfPatientID", "OtherPatientIDsSequence",
    "PatientAge", "PatientSize", "PatientWeight", "StudyDescription", "IssuerOfAccessionNumberSequence",
)  # fmt: skip
UTF_8 = "ISO_IR 192"
SERIES_NUMBER = 9000
DESCRIPTION = "Classifier result, not verified"
Reference = tuple[str, str, str, str]  # an image's UIDs: study, SOP class, SOP instance, series


def derived_uid(*parts: str) -> UID:
    """A UID under 2.25 (PS3.5 B.2) that depends on `parts` alone."""
    digest = hashlib.sha256("\n".join(parts).encode()).digest()[:16]
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")


def report_uid(bundle: Bundle, inputs: Sequence[str], predecessor: str = "") -> UID:
    """The SOP Instance UID of the report on instances with these digests that takes the place of `predecessor`."""
    version = f"template {TEMPLATE_VERSION}, preprocessing {REVISION}"
    return derived_uid("report", version, bundle.digest, predecessor, *sorted(inputs))


def enhanced(report: bytes) -> tuple[str, bytes]:
    """(SOP Instance UID, file) of a report as an Enhanced SR, for archives that know no Comprehensive 3D SR."""
    dataset = pydicom.dcmread(BytesIO(report))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedSRStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _enhanced_uid(dataset.SOPInstanceUID)
    dataset.SeriesInstanceUID = _enhanced_uid(dataset.SeriesInstanceUID)
    dataset.SeriesNumber = SERIES_NUMBER + 1
    for study in dataset.get("PredecessorDocumentsSequence") or ():
        for series in study.ReferencedSeriesSequence:
            series.SeriesInstanceUID = _enhanced_uid(series.SeriesInstanceUID)
            for item in series.ReferencedSOPSequence:
                item.ReferencedSOPClassUID = EnhancedSRStorage
                item.ReferencedSOPInstanceUID = _enhanced_uid(item.ReferencedSOPInstanceUID)
    return str(dataset.SOPInstanceUID), file_of(dataset)


def file_of(dataset: pydicom.Dataset) -> bytes:
    """A data set as a PS3.10 file."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def check_codes(bundle: Bundle) -> None:
    """Hold that a bundle says what its findings, site and procedure are called in a report.

    Raises:
        BundleError: if one is missing, or is no code.
    """
    spec = bundle.spec
    wanted = {f"the finding of {label!r}": spec.findings.get(label) for label in spec.labels}
    for what, code in {**wanted, "the site": spec.site, "the procedure": spec.procedure}.items():
        if code is None or not all(part.strip() for part in (code.value, code.scheme, code.meaning)):
            raise BundleError(
                f"the bundle {bundle.root} has no code for {what}: expected value, scheme and meaning; name them in "
                "the recipe, and make the bundle anew"
            )
        if len(code.value) > LONGEST_VALUE or len(code.scheme) > LONGEST_VALUE:
            raise BundleError(
                f"the bundle {bundle.root} has the code {code.value!r} ({code.scheme}) for {what}: expected at most "
                f"{LONGEST_VALUE} characters each (PS3.5 section 6.2)"
            )


def reference_of(image: pydicom.Dataset) -> Reference:
    """What a document refers to an image by."""
    return (
        str(image.StudyInstanceUID), str(image.SOPClassUID), str(image.SOPInstanceUID), str(image.SeriesInstanceUID)
    )  # fmt: skip


def referred(reference: Reference) -> pydicom.Dataset:
    """An image of its UIDs alone, with nothing that highdicom could find fault with."""
    image = pydicom.Dataset()
    for keyword in TYPE_2:
        setattr(image, keyword, None)
    image.StudyInstanceUID, image.SOPClassUID, image.SOPInstanceUID, image.SeriesInstanceUID = reference
    image.Modality, image.Rows, image.Columns = "OT", 1, 1  # that it is an image at all
    return image


def evidence_of(report: pydicom.Dataset) -> list[pydicom.Dataset]:
    """The images that a report refers to, like those that `referred` makes."""
    return [referred(item) for item in references(report.CurrentRequestedProcedureEvidenceSequence)]


def carry(target: pydicom.Dataset, source: pydicom.Dataset) -> None:
    """Give a document the patient and study of another data set, as they are there, even where a value is not valid.

    An archive files by them, so that a wrong one must stay as wrong as on the images. Text becomes UTF-8.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source.decode()
        target.SpecificCharacterSet = UTF_8
        for keyword in CARRIED:
            if keyword in source:
                target.add(source[keyword])
            elif keyword in TYPE_2:
                setattr(target, keyword, None)


def _enhanced_uid(uid: str) -> UID:
    return derived_uid("enhanced", str(uid))
