"""A decision as a DICOM SR: TID 1500 (PS3.16) in a Comprehensive 3D SR, PRELIMINARY, PARTIAL and UNVERIFIED.

UIDs follow from the inputs, the model, its preprocessing, the template's version and the report before, so that the
same work gives the same report. docs/sr.md tells what stands in it, row by row.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import warnings
from collections.abc import Sequence
from io import BytesIO

import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import UID, EnhancedSRStorage

from hscc_edge import __version__
from hscc_edge.bundle import Bundle, Code
from hscc_edge.data.preprocess import REVISION
from hscc_edge.errors import BundleError, extra
from hscc_edge.model.decision import Decision
from hscc_edge.serve.results.evaluation import CODING_SCHEME, LONGEST_VALUE, evaluations, probability_of, why
from hscc_edge.serve.results.result import FINDING, groups, references

with extra("device"):
    from highdicom.sr import (
        AlgorithmIdentification,
        CodedConcept,
        Comprehensive3DSR,
        DeviceObserverIdentifyingAttributes,
        FindingSite,
        Measurement,
        MeasurementReport,
        MeasurementsAndQualitativeEvaluations,
        ObservationContext,
        ObserverContext,
        QualitativeEvaluation,
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )  # fmt: skip

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
NO_UNITS = CodedConcept("1", "UCUM", "no units")
SERIES_NUMBER = 9000
DESCRIPTION = "Classifier result, not verified"


def derived_uid(*parts: str) -> UID:
    """A UID under 2.25 (PS3.5 B.2) that depends on `parts` alone."""
    digest = hashlib.sha256("\n".join(parts).encode()).digest()[:16]
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")


def report_uid(bundle: Bundle, inputs: Sequence[str], predecessor: str = "") -> UID:
    """The SOP Instance UID of the report on instances with these digests that takes the place of `predecessor`."""
    version = f"template {TEMPLATE_VERSION}, preprocessing {REVISION}"
    return derived_uid("report", version, bundle.digest, predecessor, *sorted(inputs))


def build_report(
    bundle: Bundle,
    images: Sequence[pydicom.Dataset],
    cases: Sequence[tuple[Decision, Sequence[pydicom.Dataset]]],
    uid: UID,
    predecessor: bytes | None,
) -> bytes:
    """The report's DICOM file as bytes.

    Args:
        images: all data sets of the study that were decided on, pixels not needed.
        cases: each decision with the images that it is about; one measurement group each.
        predecessor: the report that this one takes the place of.
    """
    evidence = [neutral(image) for image in images]
    content = MeasurementReport(
        observation_context=_observer(bundle),
        procedure_reported=_concept(bundle.spec.procedure),
        imaging_measurements=[_group(bundle, *case, uid, number) for number, case in enumerate(cases)],
        title=codes.DCM.ImagingMeasurementReport,
    )
    old = pydicom.dcmread(BytesIO(predecessor)) if predecessor else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = Comprehensive3DSR(
            evidence=evidence,
            content=content[0],
            series_instance_uid=derived_uid("series", str(evidence[0].StudyInstanceUID), bundle.digest),
            series_number=SERIES_NUMBER,
            sop_instance_uid=uid,
            instance_number=int(old.InstanceNumber) + 1 if old else 1,
            manufacturer="hscc_edge",
            institution_name=None,
            is_complete=False,
            is_final=False,
            is_verified=False,
            previous_versions=[old] if old else None,
        )
    carry(report, images[0])
    report.SeriesDescription = DESCRIPTION
    report.SoftwareVersions = __version__
    report.CodingSchemeIdentificationSequence = [CODING_SCHEME]
    return file_of(report)


def withdraw(report: bytes, reason: str, uid: str) -> bytes:
    """A report that takes the place of another one and has no result in it but the reason why."""
    dataset = pydicom.dcmread(BytesIO(report))
    old = (str(dataset.SOPClassUID), str(dataset.SOPInstanceUID))
    for number, group in enumerate(groups(dataset)):
        kept = [item for item in group.ContentSequence if not _is_result(item)]
        place = next((i for i, item in enumerate(kept) if item.ValueType == "IMAGE"), len(kept))
        added = [item for name, value in evaluations(None, why(reason)) for item in _evaluation(name, value)]
        group.ContentSequence = [*kept[:place], *added, *kept[place:]]
        tracking = next(item for item in group.ContentSequence if item.ValueType == "UIDREF")
        tracking.UID = derived_uid("tracking", uid, str(number))
    dataset.PredecessorDocumentsSequence = [_reference(dataset, *old)]
    return file_of(_renamed(dataset, uid, int(dataset.InstanceNumber) + 1))


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


def neutral(image: pydicom.Dataset) -> pydicom.Dataset:
    """What a document refers to an image by, and nothing that highdicom could find fault with."""
    return _neutral(image.StudyInstanceUID, image.SOPClassUID, image.SOPInstanceUID, image.SeriesInstanceUID)


def evidence_of(report: pydicom.Dataset) -> list[pydicom.Dataset]:
    """The images that a report refers to, like those that `neutral` makes."""
    return [_neutral(*uids) for uids in references(report.CurrentRequestedProcedureEvidenceSequence)]


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


def _neutral(study: str, sop_class: str, sop: str, series: str) -> pydicom.Dataset:
    image = pydicom.Dataset()
    for keyword in TYPE_2:
        setattr(image, keyword, None)
    image.StudyInstanceUID, image.SeriesInstanceUID = study, series
    image.SOPClassUID, image.SOPInstanceUID = sop_class, sop
    image.Modality, image.Rows, image.Columns = "OT", 1, 1  # that it is an image at all
    return image


def _enhanced_uid(uid: str) -> UID:
    return derived_uid("enhanced", str(uid))


def _renamed(dataset: pydicom.Dataset, uid: str, instance: int) -> pydicom.Dataset:
    now = datetime.datetime.now()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(uid)
    dataset.InstanceNumber = instance
    dataset.ContentDate, dataset.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    return dataset


def _reference(dataset: pydicom.Dataset, sop_class: str, sop: str) -> pydicom.Dataset:
    item, series, study = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop
    series.SeriesInstanceUID, series.ReferencedSOPSequence = dataset.SeriesInstanceUID, [item]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = dataset.StudyInstanceUID, [series]
    return study


def _is_result(item: pydicom.Dataset) -> bool:
    """Whether an item of a measurement group is what was found: the finding, a probability or an evaluation."""
    finding = item.ConceptNameCodeSequence[0].CodeValue == FINDING.value
    coded = item.ValueType == "CODE" and item.RelationshipType == "CONTAINS"
    return bool(finding or coded or item.ValueType == "NUM")


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning[:64])


def _evaluation(name: Code, value: Code) -> QualitativeEvaluation:
    return QualitativeEvaluation(_concept(name), _concept(value))


def _observer(bundle: Bundle) -> ObservationContext:
    device = DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", bundle.digest), name="hscc_edge", model_name=bundle.spec.name[:64]
    )
    return ObservationContext(
        observer_device_context=ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    )


def _group(
    bundle: Bundle, decision: Decision, members: Sequence[pydicom.Dataset], uid: UID, number: int
) -> MeasurementsAndQualitativeEvaluations:
    spec = bundle.spec
    measurements = [
        Measurement(name=_concept(probability_of(spec.findings[label])), value=round(value, 6), unit=NO_UNITS)
        for label, value in zip(spec.labels, decision.probabilities, strict=True)
    ] if decision.label else None  # fmt: skip
    reason = None if decision.label else why(decision.reason or "")
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=derived_uid("tracking", uid, str(number)), identifier=f"case {number + 1}"
        ),
        finding_type=_concept(spec.findings[decision.label]) if decision.label else None,
        finding_sites=[FindingSite(_concept(spec.site))],
        source_images=[SourceImageForMeasurementGroup.from_source_image(neutral(member)) for member in members],
        algorithm_id=AlgorithmIdentification(
            name=spec.name[:64],
            version=bundle.digest,
            parameters=[
                f"decision {json.dumps(spec.decision, sort_keys=True)}",
                f"bundle version {spec.version}",
                f"hscc_edge {__version__}",
            ],
        ),
        measurements=measurements,
        qualitative_evaluations=[_evaluation(*pair) for pair in evaluations(spec.decision, reason)],
    )
