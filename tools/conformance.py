"""Writes the tables of docs/conformance.md that follow from the code: python tools/conformance.py [--check]."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pynetdicom
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    EnhancedSRStorage,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
    UID_dictionary,
)

from hscc_edge.serve.config import KIND_FORMS, Destination, Listener
from hscc_edge.serve.doors import admission, commitment_scp, contexts
from hscc_edge.serve.results import evaluation, storage_user
from hscc_edge.serve.tls import CIPHERS

END = "<!-- end -->"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "conformance.md"
STORED = {
    "comprehensive-3d-sr": Comprehensive3DSRStorage, "enhanced-sr": EnhancedSRStorage,
    "secondary-capture": SecondaryCaptureImageStorage, "key-object": KeyObjectSelectionDocumentStorage,
}  # fmt: skip
MEANINGS = {
    admission.SUCCESS: "Success: file, directory and journal row are on disk, or the instance was kept before",
    admission.NO_RESOURCES: "Refused, out of resources: disk reserve, many waiting, object too large, storage failed",
    admission.CLASS_MISMATCH: "Error: the data set's SOP class is not the request's, or is not accepted",
    admission.NOT_UNDERSTOOD: "Error, cannot understand: not parsable, a needed UID is missing, malformed or another",
}
SENT_STATUSES = (0x0000, 0x0111, 0xB000, 0xB006, 0xB007, -1, -2, 0x0122, 0xA700, 0xA900, 0xC000)
FAILURES = {
    commitment_scp.PROCESSING_FAILURE: "the file is not what was kept, or its UID came with several contents",
    commitment_scp.NOT_HERE: "no such instance, or its file was removed",
    commitment_scp.CLASS_CONFLICT: "it is here with another SOP class",
    commitment_scp.NO_PLACE_FOR_EVER: "retention may remove it",
}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _syntaxes() -> str:
    return table(("Transfer syntax", "UID"), ((UID(uid).name, f"`{uid}`") for uid in contexts.SYNTAXES))


def _storage_classes() -> str:
    found = [
        (entry[0], f"`{uid}`", "yes" if entry[3] else "")
        for uid, entry in UID_dictionary.items()
        if entry[1] == "SOP Class" and uid.startswith(contexts.DICOM_ROOT) and contexts.takes_class((), uid)
    ]
    return table(("SOP class", "UID", "retired"), sorted(found))


def _statuses() -> str:
    rows = ((f"`{status:#06x}`", meaning) for status, meaning in MEANINGS.items())
    return table(("Status", "When"), rows)


def _sent() -> str:
    names = {-1: "no answer", -2: "no presentation context accepted"}
    rows = []
    for status in SENT_STATUSES:
        outcome = storage_user.outcome_of(status)
        counted = "yes" if outcome.counts else ""
        rows.append((names.get(status, f"`{status & 0xFFFF:#06x}`"), outcome.kind, counted))
    return table(("Answer", "Means", "Counts as an attempt"), rows)


def _forms() -> str:
    rows = [(form, STORED[form].name, f"`{STORED[form]}`") for form in KIND_FORMS["dicom"]]
    return table(("Form", "SOP class", "UID"), rows)


def _limits() -> str:
    door, destination = Listener(), Destination()
    return table(
        ("Parameter", "Key", "Default"),
        [
            ("Local AE title", "`dicom.ae_title`", door.ae_title),
            ("Port", "`dicom.port`", door.port),
            ("Maximum PDU received", "`dicom.max_pdu`", f"{door.max_pdu} bytes"),
            ("Associations accepted, in all", "`dicom.max_associations`", door.max_associations),
            ("Associations accepted, from one address", "`dicom.max_associations_per_peer`",
             door.max_associations_per_peer),
            ("Largest object", "`dicom.max_object_mib`", f"{door.max_object_mib} MiB"),
            ("Inactivity timeout of an accepted association", "`dicom.idle_s`", f"{door.idle_s:g} s"),
            ("Timeout of a requested association", "`destination.timeout_s`", f"{destination.timeout_s:g} s"),
            ("Attempts of one object", "`destination.attempts`", destination.attempts),
            ("First and last pause between attempts", "`destination.first_retry_s`, `last_retry_s`",
             f"{destination.first_retry_s:g} s, {destination.last_retry_s:g} s"),
            ("Commitment is asked for again after", "`destination.commitment_s`", f"{destination.commitment_s:g} s"),
        ],
    )  # fmt: skip


def _commitment() -> str:
    return table(("Failure reason", "When"), ((f"`{code:#06x}`", words) for code, words in FAILURES.items()))


def _identity() -> str:
    return table(
        ("Item", "Value"),
        [
            ("Implementation Class UID", f"`{pynetdicom.PYNETDICOM_IMPLEMENTATION_UID}`"),
            (
                "Implementation Version Name",
                f"the same library's, such as `{pynetdicom.PYNETDICOM_IMPLEMENTATION_VERSION}`",
            ),
        ],
    )


def _codes() -> str:
    found = [item for item in vars(evaluation).values() if isinstance(item, evaluation.Code)]
    return table(("Code value", "Scheme", "Meaning"), ((item.value, item.scheme, item.meaning) for item in found))


def _ciphers() -> str:
    return "\n".join(f"- `{name}`" for name in CIPHERS)


TABLES: dict[str, Callable[[], str]] = {
    "syntaxes": _syntaxes, "storage": _storage_classes, "statuses": _statuses, "sent": _sent, "forms": _forms,
    "limits": _limits, "commitment": _commitment, "identity": _identity, "codes": _codes, "ciphers": _ciphers,
}  # fmt: skip


def filled(text: str) -> str:
    """The page with each table as the code has it now."""
    for name, make in TABLES.items():
        begin = f"<!-- table {name} -->\n"
        if text.count(begin) != 1:
            raise SystemExit(f"docs/conformance.md has {text.count(begin)} places for the table {name}: expected one")
        before, _, rest = text.partition(begin)
        after = rest[rest.index(END) :]
        text = f"{before}{begin}{make()}\n{after}"
    return text


if __name__ == "__main__":
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv:
        raise SystemExit(0 if old == new else "docs/conformance.md is out of date: run python tools/conformance.py")
    PAGE.write_text(new, encoding="utf-8")
