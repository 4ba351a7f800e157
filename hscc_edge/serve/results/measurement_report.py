"""The report itself: TID 1500 (PS3.16) in a Comprehensive 3D SR, PRELIMINARY, PARTIAL and UNVERIFIED, by highdicom.

docs/sr.md tells what stands in it, row by row. Imported when the first report is made: few processes need highdicom and
its tables of codes, which are a tenth of the daemon's memory.
"""

from __future__ import annotations

import datetime
import json
import warnings
from collections.abc import Sequence
from io import BytesIO

import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import UID

from hscc_edge import __version__
from hscc_edge.bundle import Bundle, Code
from hscc_edge.errors import extra
from hscc_edge.model.decision import Decision
from hscc_edge.serve.results.evaluation import CODING_SCHEME, evaluations, probability_of, why
from hscc_edge.serve.results.result import FINDING, groups
from hscc_edge.serve.results.sr import DESCRIPTION, SERIES_NUMBER, Reference, carry, derived_uid, file_of, referred

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

NO_UNITS = CodedConcept("1", "UCUM", "no units")


def build_report(
    bundle: Bundle,
    head: pydicom.Dataset,
    cases: Sequence[tuple[Decision, Sequence[Reference]]],
    uid: UID,
    predecessor: bytes | None,
) -> bytes:
    """The report's DICOM file as bytes.

    Args:
        head: headers of one of the study's images, whose patient and study the report carries.
        cases: each decision with the images that it is about; one measurement group each.
        predecessor: the report that this one takes the place of.
    """
    evidence = {image: referred(image) for _, members in cases for image in members}
    content = MeasurementReport(
        observation_context=_observer(bundle),
        procedure_reported=_concept(bundle.spec.procedure),
        imaging_measurements=[
            _group(bundle, decision, [evidence[member] for member in members], uid, number)
            for number, (decision, members) in enumerate(cases)
        ],
        title=codes.DCM.ImagingMeasurementReport,
    )
    old = pydicom.dcmread(BytesIO(predecessor)) if predecessor else None
    measured = content[0].ContentSequence.pop()  # goes in last: highdicom would copy it, and walk it and the copy
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = Comprehensive3DSR(
            evidence=list(evidence.values()),
            content=content[0],
            series_instance_uid=derived_uid("series", str(head.StudyInstanceUID), bundle.digest),
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
    report.ContentSequence.append(measured)
    carry(report, head)
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
        source_images=[SourceImageForMeasurementGroup.from_source_image(member) for member in members],
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
