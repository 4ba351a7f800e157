"""The result as an HL7 v2.5.1 unsolicited observation message (ORU^R01), all of it preliminary."""

from __future__ import annotations

from typing import Any

import pydicom
from pydicom.multival import MultiValue

from hscc_edge import __version__
from hscc_edge.bundle import Code
from hscc_edge.errors import extra
from hscc_edge.serve.results.result import FINDING, Case, Result
from hscc_edge.serve.results.sr import derived_uid

VERSION = "2.5.1"
SYSTEMS = {"SCT": "SCT", "DCM": "DCM", "LN": "LN"}  # HL7 table 0396; others are local
CONTROL_ID = 20  # characters of MSH-10
PRELIMINARY, NOT_OBTAINED = "P", "X"  # HL7 tables 0085 and 0123


def oru(result: Result) -> bytes:
    """The message in UTF-8, its segments ended by carriage returns."""
    with extra("integrations"):
        from hl7apy.core import Message

    message: Any = Message("ORU_R01", version=VERSION)
    _header(message.msh, result)
    patient = message.add_group("oru_r01_patient_result")
    _patient(patient.add_group("oru_r01_patient").add_segment("pid"), result.dataset)
    order = patient.add_group("oru_r01_order_observation")
    _request(order.add_segment("obr"), result)
    observations = [(number, *row) for number, case in enumerate(result.cases, start=1) for row in _rows(case, result)]
    for place, (sub, name, kind, value, status) in enumerate(observations, start=1):
        segment = order.add_group("oru_r01_observation").add_segment("obx")
        segment.obx_1, segment.obx_2, segment.obx_3 = str(place), kind, _coded(name)
        segment.obx_4, segment.obx_5, segment.obx_11 = str(sub), value, status
    return str(message.to_er7()).encode()


def control_id(result: Result) -> str:
    """The same for every try to send the same result."""
    return derived_uid("oru", result.sop)[-CONTROL_ID:]


def _header(segment: Any, result: Result) -> None:
    segment.msh_3 = "hscc_edge"
    segment.msh_7 = result.made
    segment.msh_9 = "ORU^R01^ORU_R01"
    segment.msh_10 = control_id(result)
    segment.msh_11 = "P"
    segment.msh_12 = VERSION
    segment.msh_18 = "UNICODE UTF-8"


def _patient(segment: Any, report: pydicom.Dataset) -> None:
    segment.pid_1 = "1"
    segment.pid_3 = _text(report.get("PatientID"))
    segment.pid_5 = "^".join(_text(part) for part in str(report.get("PatientName") or "").split("=")[0].split("^"))
    segment.pid_7 = _text(report.get("PatientBirthDate"))
    segment.pid_8 = _text(report.get("PatientSex"))


def _request(segment: Any, result: Result) -> None:
    report = result.dataset
    segment.obr_1 = "1"
    segment.obr_3 = _text(report.get("AccessionNumber"))
    segment.obr_4 = _coded(result.procedure)
    segment.obr_7 = f"{report.get('StudyDate') or ''}{str(report.get('StudyTime') or '')[:6]}"
    segment.obr_22 = result.made
    segment.obr_24 = "RAD"
    segment.obr_25 = PRELIMINARY


def _rows(case: Case, result: Result) -> list[tuple[Code, str, str, str]]:
    """(what, type, value, status) of a case's observations."""
    software = Code("111001", "DCM", "Algorithm Name")
    study = Code("110180", "DCM", "Study Instance UID")
    report = Code("121002", "DCM", "SR Document")
    rows = [
        (software, "ST", _text(f"{result.model}, {result.version[:12]}, hscc_edge {__version__}"), PRELIMINARY),
        (study, "ST", str(result.dataset.StudyInstanceUID), PRELIMINARY),
        (report, "ST", result.sop, PRELIMINARY),
    ]
    if case.finding is None:
        return [(FINDING, "ST", _text(f"No result: {case.why}"), NOT_OBTAINED), *rows]
    shares = [(what, "NM", f"{value:.6f}", PRELIMINARY) for what, value in case.probabilities]
    return [(FINDING, "CWE", _coded(case.finding), PRELIMINARY), *shares, *rows]


def _coded(code: Code) -> str:
    return (
        f"{_text(code.value)}^{_text(code.meaning)}^{SYSTEMS.get(code.scheme, '99' + code.scheme.removeprefix('99'))}"
    )


def _text(value: object) -> str:
    """A text in which nothing is taken for a delimiter (HL7 v2.5.1 section 2.7)."""
    text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "")
    for sign, escape in (("\\", "\\E\\"), ("|", "\\F\\"), ("^", "\\S\\"), ("&", "\\T\\"), ("~", "\\R\\")):
        text = text.replace(sign, escape)
    return text.replace("\r", " ").replace("\n", " ")
