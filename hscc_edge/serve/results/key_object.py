"""The result as a Key Object Selection: the images that it is about and its words, for a viewer's key images."""

from __future__ import annotations

from typing import Any

from pydicom.sr.codedict import codes

from hscc_edge.errors import extra
from hscc_edge.serve.results.result import Result
from hscc_edge.serve.results.sr import DESCRIPTION, SERIES_NUMBER, carry, derived_uid, evidence_of, file_of

with extra("device"):
    from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
    from highdicom.sr import DeviceObserverIdentifyingAttributes, ObserverContext


def key_object(result: Result) -> tuple[str, bytes]:
    """(SOP Instance UID, file) of the selection."""
    uid, images, report = derived_uid("key-object", result.sop), evidence_of(result.dataset), result.dataset
    named = {sop for case in result.cases for _, sop in case.images}
    device = DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", result.version), name="hscc_edge", model_name=result.model
    )
    selection = KeyObjectSelection(
        document_title=codes.DCM.OfInterest,
        referenced_objects=[image for image in images if str(image.SOPInstanceUID) in named],
        observer_device_context=ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device),
        description="\n".join(result.lines()),
    )
    document: Any = KeyObjectSelectionDocument(
        evidence=images,
        content=selection,
        series_instance_uid=derived_uid("key-object", str(report.SeriesInstanceUID)),
        series_number=SERIES_NUMBER + 3,
        sop_instance_uid=uid,
        instance_number=int(report.InstanceNumber),
        manufacturer="hscc_edge",
    )
    carry(document, report)
    document.SeriesDescription = DESCRIPTION
    return uid, file_of(document)
