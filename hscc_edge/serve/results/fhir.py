"""The result as FHIR R4: a transaction of a DiagnosticReport and an Observation for each case, created once.

Each resource has an identifier that follows from the report's UID, and is created only if none has it (conditional
create, FHIR R4 section 3.1.0.8.1), so that sending it again changes nothing.
"""

from __future__ import annotations

import datetime
from typing import Any
from uuid import UUID

import pydicom

from hscc_edge.bundle import Code
from hscc_edge.errors import extra
from hscc_edge.serve.results.result import FINDING, Case, Result
from hscc_edge.serve.results.sr import derived_uid

OID = "urn:ietf:rfc:3986"
DICOM_UID = "urn:dicom:uid"
SYSTEMS = {
    "SCT": "http://snomed.info/sct", "DCM": "http://dicom.nema.org/resources/ontology/DCM", "LN": "http://loinc.org",
}  # fmt: skip
UCUM = "http://unitsofmeasure.org"
REPLACES = "http://hl7.org/fhir/StructureDefinition/diagnosticReport-replaces"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
SECTION = "http://terminology.hl7.org/CodeSystem/v2-0074"


def fhir_report(result: Result) -> bytes:
    """The transaction as JSON, checked against the definitions of R4B, which has no difference to R4 here."""
    with extra("integrations"):
        from fhir.resources.R4B.bundle import Bundle

    observations = [
        (_uid("fhir-observation", result.sop, str(number)), case) for number, case in enumerate(result.cases)
    ]
    resources = [_report(result, [uid for uid, _ in observations])]
    resources += [_observation(result, uid, case) for uid, case in observations]
    content = {"resourceType": "Bundle", "type": "transaction", "entry": [_entry(item) for item in resources]}
    return str(Bundle.model_validate(content).model_dump_json()).encode()


def _uid(*parts: str) -> str:
    return str(derived_uid(*parts))


def _entry(resource: dict[str, Any]) -> dict[str, Any]:
    identifier, kind = resource["identifier"][0], resource["resourceType"]
    return {
        "fullUrl": _urn(identifier["value"].removeprefix("urn:oid:")),
        "resource": resource,
        "request": {"method": "POST", "url": kind, "ifNoneExist": f"identifier={OID}|{identifier['value']}"},
    }


def _urn(uid: str) -> str:
    """A UID under 2.25 as the UUID that it is (PS3.5 B.2)."""
    return f"urn:uuid:{UUID(int=int(uid.removeprefix('2.25.')))}"


def _report(result: Result, observations: list[str]) -> dict[str, Any]:
    dataset = result.dataset
    found = {
        "resourceType": "DiagnosticReport",
        "identifier": [_identifier(OID, f"urn:oid:{result.sop}")],
        "status": "preliminary" if any(case.finding for case in result.cases) else "cancelled",
        "category": [{"coding": [{"system": SECTION, "code": "RAD", "display": "Radiology"}]}],
        "code": _concept(result.procedure),
        "subject": _subject(dataset),
        "issued": datetime.datetime.strptime(result.made, "%Y%m%d%H%M%S").astimezone().isoformat(),
        "result": [{"reference": _urn(uid)} for uid in observations],
        "imagingStudy": [
            {"type": "ImagingStudy", "identifier": _identifier(DICOM_UID, f"urn:oid:{dataset.StudyInstanceUID}")}
        ],
        "conclusion": "\n".join(result.lines()),
        "conclusionCode": [_concept(case.finding) for case in result.cases if case.finding],
        "effectiveDateTime": _date(dataset),
    }
    if result.predecessor:
        value = {"type": "DiagnosticReport", "identifier": _identifier(OID, f"urn:oid:{result.predecessor}")}
        found["extension"] = [{"url": REPLACES, "valueReference": value}]
    return _filled(found)


def _observation(result: Result, uid: str, case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {
        "resourceType": "Observation",
        "identifier": [_identifier(OID, f"urn:oid:{uid}")],
        "status": "preliminary" if case.finding else "cancelled",
        "code": _concept(FINDING),
        "subject": _subject(result.dataset),
        "effectiveDateTime": _date(result.dataset),
        "bodySite": _concept(case.site),
        "method": {"text": f"Classifier {result.model}, bundle {result.version}"},
    }
    if case.finding:
        found["valueCodeableConcept"] = _concept(case.finding)
        found["component"] = [
            {"code": _concept(what), "valueQuantity": {"value": value, "unit": "1", "system": UCUM, "code": "1"}}
            for what, value in case.probabilities
        ]
    else:
        found["dataAbsentReason"] = {"coding": [{"system": ABSENT, "code": "error"}]}
        found["note"] = [{"text": f"No result: {case.why}"}]
    return _filled(found)


def _filled(resource: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resource.items() if value not in (None, "", [])}


def _identifier(system: str, value: str) -> dict[str, str]:
    return {"system": system, "value": value}


def _concept(code: Code) -> dict[str, Any]:
    system = SYSTEMS.get(code.scheme, f"urn:hscc-edge:{code.scheme}")
    return {"coding": [{"system": system, "code": code.value, "display": code.meaning}], "text": code.meaning}


def _subject(dataset: pydicom.Dataset) -> dict[str, Any] | None:
    patient = str(dataset.get("PatientID") or "").strip()
    issuer = str(dataset.get("IssuerOfPatientID") or "").strip()
    if not patient:
        return None
    identifier = {"value": patient, **({"assigner": {"display": issuer}} if issuer else {})}
    return {"type": "Patient", "identifier": identifier}


def _date(dataset: pydicom.Dataset) -> str | None:
    try:
        return datetime.datetime.strptime(str(dataset.get("StudyDate") or ""), "%Y%m%d").date().isoformat()
    except ValueError:
        return None
