"""Words for what the journal holds in short: states, events, forms; moments and sizes as people read them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydicom.uid import UID

from hscc_edge.serve.timeline import Event

# state -> (word, look); a look is a class of the style sheet, and never the only way to tell.
STATES = {
    "receiving": ("receiving", "busy"), "waiting": ("waiting", "busy"), "working": ("in work", "busy"),
    "received": ("waiting", "busy"), "reported": ("reported", "good"), "no-result": ("no result", "note"),
    "conflict": ("kept apart", "warn"), "pending": ("to be sent", "busy"), "stored": ("awaits commitment", "busy"),
    "delivered": ("delivered", "good"), "dead": ("dead letter", "bad"), "unsent": ("to be sent", "busy"),
    "withheld": ("not sent: recalled or superseded", "plain"),
    "active": ("active", "good"), "installed": ("installed", "note"), "shadow": ("shadow", "busy"),
    "retired": ("active before", "plain"), "withdrawn": ("withdrawn", "warn"),
    "current": ("current", "good"), "superseded": ("superseded", "plain"), "recalled": ("recalled", "warn"),
}  # fmt: skip
EVENTS = {
    "received": ("First byte", "by {door}, {peer}"),
    "reopened": ("Late instances", "opened again by {door}, {peer}"),
    "conflict": ("Same UID, other content", "kept apart, never overwritten"),
    "started": ("Work began", ""),
    "retried": ("Work failed", "{reason}; tried again"),
    "reported": ("Report made", "by {model}, bundle {digest}"),
    "no-result": ("No result", "{reason}"),
    "sent": ("Sent", "{form} to {destination}"),
    "committed": ("Committed", "{destination} keeps {form}"),
    "failed": ("Not taken", "{destination}: {reason}"),
    "dead": ("Dead letter", "{destination}: {reason}"),
    "redriven": ("Sent again by hand", "{form} to {destination}"),
    "withheld": ("Not sent again", "{destination} has a later report"),
    "recalled": ("Recalled", "reports of {model} {digest}"),
    "released": ("Taken up again", "{instances} instances from the quarantine"),
    "removed": ("Files removed", "{files} by retention"),
    "activated": ("Model switched", "{model} {digest}"),
    "rolled-back": ("Model rolled back", "{model}: {reason}"),
    "drift": ("Drift", "{model}: {reason}"),
    "drift-over": ("Drift over", "{model}"),
}
LOOKS = {
    "conflict": "warn", "retried": "warn", "failed": "warn", "dead": "bad", "drift": "warn", "reported": "good",
    "committed": "good", "sent": "good", "recalled": "warn", "rolled-back": "warn", "no-result": "note",
}  # fmt: skip
PRIORITIES = {0: "routine", 1: "high", 2: "stat"}
DOORS = {"dimse": "C-STORE", "stow": "STOW-RS", "folder": "folder"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a timeline: like events in a row are one, `count` of them until `last`."""

    time: float
    kind: str
    title: str
    detail: str
    look: str
    count: int = 1
    last: float = 0.0


def lines(events: Sequence[Event]) -> list[Line]:
    """A timeline for people."""
    found: list[Line] = []
    for event in events:
        title, detail = title_of(event.kind, event.detail)
        before = found[-1] if found else None
        if before is not None and (before.kind, before.detail) == (event.kind, detail):
            found[-1] = Line(before.time, before.kind, title, detail, before.look, before.count + 1, event.time)
        else:
            found.append(Line(event.time, event.kind, title, detail, LOOKS.get(event.kind, "plain"), 1, event.time))
    return found


def title_of(kind: str, detail: Mapping[str, Any]) -> tuple[str, str]:
    """(what happened, more about it) of an event; one of a kind that is not known here is shown as it is."""
    title, pattern = EVENTS.get(kind, (kind, ", ".join(f"{name} {{{name}}}" for name in detail if name.isidentifier())))
    values = {name: DOORS.get(str(value), value) if name == "door" else value for name, value in detail.items()}
    said = pattern.format_map(defaultdict(str, values)).strip(" :,;")
    return title, f"{said}, in place of the one before" if detail.get("superseding") else said


def moment(seconds: float | None) -> str:
    """Day and time of this machine; a dash for none."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def stamp(seconds: float) -> str:
    """The same for programs, with its offset (ISO 8601)."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def span(seconds: float) -> str:
    """A duration in its two largest units at most."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def ago(seconds: float | None) -> str:
    """How long ago."""
    if seconds is None:
        return "-"
    passed = time.time() - seconds
    return "just now" if -60 < passed < 2 else f"in {span(-passed)}" if passed < 0 else f"{span(passed)} ago"


def size(count: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def sop_class(uid: str) -> str:
    """A standard SOP class by its name, any other as "private": its UID may tell whose it is."""
    name = UID(uid).name
    return "private SOP class" if name == uid else name.removesuffix(" Storage").removesuffix(" Image")


def number(count: float) -> str:
    """With thin groups of thousands."""
    return f"{count:,.0f}".replace(",", "\u202f")
