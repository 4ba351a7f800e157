"""DICOM audit messages (PS3.15 A.5) as XML; they name the patient, and leave the machine over TLS only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from xml.etree.ElementTree import Element, SubElement, tostring

Code = tuple[str, str]
# PS3.16 CID 400 and 401
APPLICATION_ACTIVITY: Code = ("110100", "Application Activity")
BEGIN_TRANSFERRING: Code = ("110102", "Begin Transferring DICOM Instances")
TRANSFERRED: Code = ("110104", "DICOM Instances Transferred")
STUDY_DELETED: Code = ("110105", "DICOM Study Deleted")
SECURITY_ALERT: Code = ("110113", "Security Alert")
USER_AUTHENTICATION: Code = ("110114", "User Authentication")
START: Code = ("110120", "Application Start")
STOP: Code = ("110121", "Application Stop")
LOGIN: Code = ("110122", "Login")
LOGOUT: Code = ("110123", "Logout")
NODE_AUTHENTICATION: Code = ("110126", "Node Authentication")
SOFTWARE: Code = ("110131", "Software Configuration")
RESTRICTED: Code = ("110132", "Use of Restricted Function")
OBJECT_CHANGED: Code = ("110135", "Object Security Attributes Changed")
# PS3.16 CID 402, 404 and 405
APPLICATION: Code = ("110150", "Application")
DESTINATION: Code = ("110152", "Destination Role ID")
SOURCE: Code = ("110153", "Source Role ID")
STUDY_UID: Code = ("110180", "Study Instance UID")
NODE: Code = ("110182", "Node ID")
PATIENT_NUMBER: Code = ("2", "Patient Number")  # from RFC 3881
GOOD, MINOR = "0", "4"
SERVER = "4"


@dataclass(frozen=True, slots=True)
class Participant:
    """A person or process that takes part.

    Attributes:
        address: host name or IP address.
        titles: AE titles.
    """

    user: str
    requestor: bool
    role: Code | None = None
    address: str = ""
    titles: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose study an event is about.

    Attributes:
        classes: SOP Class UID -> number of instances.
    """

    study: str = field(repr=False)
    patient_id: str = field(repr=False)
    patient_name: str = field(repr=False)
    classes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Node:
    """What a security alert is about."""

    address: str
    description: str


@dataclass(frozen=True, slots=True)
class Event:
    """One message.

    Attributes:
        action: C, R, U, D or E.
        at: seconds since 1970.
        outcome: 0 for success, 4 for a minor failure.
    """

    kind: Code
    action: str
    at: float
    participants: Sequence[Participant]
    source: str
    type: Code | None = None
    outcome: str = GOOD
    about: Subject | Node | None = None


def own(title: str, *, requestor: bool, role: Code | None = None) -> Participant:
    """This process."""
    return Participant(str(os.getpid()), requestor, role, titles=title)


def xml(event: Event) -> bytes:
    """The message, ordered as the schema of PS3.15 A.5.1 wants it."""
    root = Element("AuditMessage")
    moment = datetime.fromtimestamp(event.at, timezone.utc).isoformat(timespec="milliseconds")
    head = SubElement(
        root, "EventIdentification", EventActionCode=event.action, EventDateTime=moment,
        EventOutcomeIndicator=event.outcome,
    )  # fmt: skip
    _code(head, "EventID", event.kind)
    if event.type is not None:
        _code(head, "EventTypeCode", event.type)
    for participant in event.participants:
        _participant(root, participant)
    origin = SubElement(root, "AuditSourceIdentification", AuditSourceID=event.source)
    SubElement(origin, "AuditSourceTypeCode", {"csd-code": SERVER})
    if isinstance(event.about, Subject):
        _study(root, event.about)
        _patient(root, event.about)
    elif event.about is not None:
        _node(root, event.about)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True))


def _code(parent: Element, name: str, code: Code, system: str = "DCM") -> None:
    SubElement(parent, name, {"csd-code": code[0], "codeSystemName": system, "originalText": code[1]})


def _participant(root: Element, item: Participant) -> None:
    values = {"UserID": _clean(item.user), "UserIsRequestor": str(item.requestor).lower()}
    if item.titles:
        values["AlternativeUserID"] = f"AETITLES={_clean(item.titles)}"
    if item.address:
        values["NetworkAccessPointID"] = _clean(item.address)
        values["NetworkAccessPointTypeCode"] = (
            "2" if item.address.replace(".", "").isdecimal() or ":" in item.address else "1"
        )
    element = SubElement(root, "ActiveParticipant", values)
    if item.role is not None:
        _code(element, "RoleIDCode", item.role)


def _object(root: Element, number: str, kind: str, role: str, code: Code, name: str, system: str = "DCM") -> Element:
    element = SubElement(
        root, "ParticipantObjectIdentification", ParticipantObjectID=_clean(number), ParticipantObjectTypeCode=kind,
        ParticipantObjectTypeCodeRole=role,
    )  # fmt: skip
    _code(element, "ParticipantObjectIDTypeCode", code, system)
    SubElement(element, "ParticipantObjectName").text = _clean(name)
    return element


def _study(root: Element, subject: Subject) -> None:
    element = _object(root, subject.study, "2", "3", STUDY_UID, "Study")
    if subject.classes:
        description = SubElement(element, "ParticipantObjectDescription")
        for uid, number in sorted(subject.classes.items()):
            SubElement(description, "SOPClass", UID=uid, NumberOfInstances=str(number))


def _patient(root: Element, subject: Subject) -> None:
    _object(root, subject.patient_id or "unknown", "1", "1", PATIENT_NUMBER, subject.patient_name, "RFC-3881")


def _node(root: Element, node: Node) -> None:
    _object(root, node.address or "unknown", "2", "13", NODE, node.description)


def _clean(text: str) -> str:
    """Without what XML 1.0 cannot hold."""
    return "".join(letter for letter in text if letter >= " " and letter not in "\ufffe\uffff" and letter.isprintable())
