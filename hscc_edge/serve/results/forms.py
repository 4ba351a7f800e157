"""The forms in which a report is sent; every byte of them exists, and is journalled, before the first is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hscc_edge.serve.config import KIND_FORMS, Config, Destination
from hscc_edge.serve.outbox import NewDelivery
from hscc_edge.serve.results.fhir import fhir_report
from hscc_edge.serve.results.oru import oru
from hscc_edge.serve.results.result import Result, read_result
from hscc_edge.serve.results.sr import enhanced, file_of

PLAIN = "comprehensive-3d-sr"  # the report itself


@dataclass(frozen=True, slots=True)
class Made:
    """One form of a report.

    Attributes:
        sop: its SOP Instance UID, if it is a DICOM file.
        content: None where it is the report itself.
    """

    sop: str | None = field(repr=False)
    content: bytes | None = field(repr=False)


def _comprehensive(result: Result) -> Made:
    return Made(None, None)


def _enhanced(result: Result) -> Made:
    return Made(*enhanced(file_of(result.dataset)))


def _secondary_capture(result: Result) -> Made:
    from hscc_edge.serve.results.secondary_capture import secondary_capture  # with highdicom, as the report

    return Made(*secondary_capture(result))


def _key_object(result: Result) -> Made:
    from hscc_edge.serve.results.key_object import key_object

    return Made(*key_object(result))


FORMS: dict[str, Callable[[Result], Made]] = {
    PLAIN: _comprehensive,
    "enhanced-sr": _enhanced,
    "secondary-capture": _secondary_capture,
    "key-object": _key_object,
    "hl7-oru": lambda result: Made(None, oru(result)),
    "fhir-report": lambda result: Made(None, fhir_report(result)),
}


def wanted(destination: Destination) -> tuple[str, ...]:
    """The forms that go to a destination."""
    return destination.forms or KIND_FORMS[destination.kind][:1]


def deliveries(config: Config, report: bytes) -> list[NewDelivery]:
    """What is to be sent for a report (an SR that `sr` made), to every destination, with its bytes."""
    asked = [(item.name, form) for item in config.destination for form in wanted(item)]
    made = {PLAIN: Made(None, None)}
    if others := dict.fromkeys(form for _, form in asked if form != PLAIN):
        result = read_result(report)
        made |= {form: FORMS[form](result) for form in others}
    return [NewDelivery(name, form, made[form].sop, made[form].content) for name, form in asked]
