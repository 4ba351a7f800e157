"""A decision as a DICOM SR: TID 1500 (PS3.16) in a Comprehensive 3D SR, PRELIMINARY and UNVERIFIED.

UIDs follow from the inputs, the model and the template's version, so that the same work gives the same report.
"""

from __future__ import annotations

import hashlib
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
        SourceImageForMeasurementGroup,
        TrackingIdentifier,
    )  # fmt: skip

TEMPLATE_VERSION = "1"
TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
NO_UNITS = CodedConcept("1", "UCUM", "no units")


def derived_uid(*parts: str) -> UID:
    """A UID under 2.25 (PS3.5 B.2) that depends on `parts` alone."""
    digest = hashlib.sha256("\n".join(parts).encode()).digest()[:16]
    return UID(f"2.25.{int.from_bytes(digest, 'big')}")


def report_uid(bundle: Bundle, inputs: Sequence[str]) -> UID:
    """The SOP Instance UID of the report on instances with these digests."""
    return derived_uid("report", TEMPLATE_VERSION, bundle.digest, *sorted(inputs))


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
    evidence = [_completed(image) for image in images]
    groups = [_group(bundle, decision, members, uid, number) for number, (decision, members) in enumerate(cases)]
    content = MeasurementReport(
        observation_context=_observer(bundle),
        procedure_reported=_concept(bundle.spec.procedure),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = Comprehensive3DSR(
            evidence=evidence,
            content=content[0],
            series_instance_uid=derived_uid("series", str(evidence[0].StudyInstanceUID), bundle.digest),
            series_number=9000,
            sop_instance_uid=uid,
            instance_number=1,
            manufacturer="hscc_edge",
            institution_name=None,
            is_complete=False,
            is_final=False,
            is_verified=False,
            previous_versions=[pydicom.dcmread(BytesIO(predecessor))] if predecessor else None,
        )
    report.SeriesDescription = "Classifier result, not verified"
    report.SoftwareVersions = __version__
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, report, enforce_file_format=True)
    return buffer.getvalue()


def _completed(image: pydicom.Dataset) -> pydicom.Dataset:
    """A copy in which absent type 2 attributes are present and empty, as a report needs them."""
    copy = pydicom.Dataset()
    copy.update(image)
    for keyword in TYPE_2:
        if keyword not in copy:
            setattr(copy, keyword, "" if keyword != "PatientName" else None)
    return copy


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme, code.meaning[:64])


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
    algorithm = AlgorithmIdentification(
        name=spec.name[:64], version=bundle.digest, parameters=[f"decision {spec.decision}", f"hscc_edge {__version__}"]
    )
    measurements = [
        Measurement(
            name=CodedConcept(f"P-{index}", "99HSCC", f"Probability of {spec.findings[label].meaning}"[:64]),
            value=round(value, 6),
            unit=NO_UNITS,
        )
        for index, (label, value) in enumerate(zip(spec.labels, decision.probabilities, strict=True))
    ]
    finding = _concept(spec.findings[str(decision.label)])
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=derived_uid("tracking", uid, str(number)), identifier=f"case {number + 1}"
        ),
        finding_type=finding,
        finding_sites=[FindingSite(_concept(spec.site))],
        source_images=[SourceImageForMeasurementGroup.from_source_image(_completed(member)) for member in members],
        algorithm_id=algorithm,
        measurements=measurements,
    )
