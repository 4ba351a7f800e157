"""Pages of the box itself: its models, how it does over time, its disk, doors and certificates, and who did what."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from urllib.parse import quote

from hscc_edge.errors import extra
from hscc_edge.serve import audit, tallies
from hscc_edge.serve.config import Config, Listener, Web
from hscc_edge.serve.config_rules import is_loopback
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.operations.alarms import read_status
from hscc_edge.serve.operations.certificates import certificates
from hscc_edge.serve.web import trends
from hscc_edge.serve.web.desk import Visit
from hscc_edge.serve.worker import models
from hscc_edge.serve.worker.comparison import Comparison, compare
from hscc_edge.serve.worker.models import Model

with extra("device"):
    from starlette.exceptions import HTTPException
    from starlette.responses import RedirectResponse, Response

LOG = logging.getLogger(__name__)
LINES, COUNTERS = 100, 100
LONG_NUMBER = re.compile(r"\d{5,}|\d+(\.\d+){2,}")


@dataclass(frozen=True, slots=True)
class Served:
    """One name with its bundles, the last changed first; `before` is what a roll-back brings back."""

    name: str
    bundles: list[Model]
    active: Model | None
    before: Model | None
    shadow: Model | None
    comparison: Comparison | None


@dataclass(frozen=True, slots=True)
class Door:
    """A listening port, and who may use it."""

    name: str
    address: str
    who: str
    open: bool


def served(visit: Visit) -> Response:
    """Models: active, before, candidates, and the shadow's comparison."""
    found = groupby(models.models(visit.journal), key=lambda model: model.name)
    names = [_served(visit.journal, name, list(rows)) for name, rows in found]
    done = visit.asked("done")
    return visit.page("models.html.j2", served=names, done=done if done in {item.name for item in names} else "")


def _served(journal: Journal, name: str, rows: list[Model]) -> Served:
    def newest(state: str) -> Model | None:
        return max((row for row in rows if row.state == state), key=lambda row: row.since, default=None)

    active, shadow = newest(models.ACTIVE), newest(models.SHADOW)
    found = compare(journal, active.digest, shadow.digest) if active is not None and shadow is not None else None
    return Served(name, rows[::-1], active, newest(models.RETIRED), shadow, found)


def roll_back(visit: Visit) -> Response:
    """Bring back the bundle that was active before; a second press of an old page's button does nothing."""
    name, reason, seen = visit.given("name"), visit.given("reason").strip()[:200], visit.given("active")
    active = models.find(visit.journal, name, models.ACTIVE)
    if not reason or LONG_NUMBER.search(reason):
        raise HTTPException(400, "Say why in words, without long numbers: the reason is kept, and may identify nobody.")
    if active is None or active.digest != seen:
        raise HTTPException(409, "The active bundle has changed since this page was made: look at it again.")
    audit.audit(visit.desk.station, "model-rollback", account=visit.session.account, model=name, reason=reason)
    back = models.roll_back(visit.journal, name, f"by {visit.session.account}: {reason}")
    if back is None:
        raise HTTPException(409, "There is no bundle to go back to.")
    LOG.info("event=rolled_back model=%s digest=%s by=dashboard", name, back.digest[:12])
    return RedirectResponse(f"/models?done={quote(name)}", 303)


def charts(visit: Visit) -> Response:
    """How many, how fast, and how like the calibration's studies."""
    return visit.page("charts.html.j2", charts=trends.charts(visit.journal, visit.desk.config.drift))


def box(visit: Visit) -> Response:
    """Disk, doors, certificates and processes."""
    config, journal = visit.desk.config, visit.journal
    files = [journal.path, journal.path.with_name(f"{journal.path.name}-wal")]
    return visit.page(
        "box.html.j2",
        disk=shutil.disk_usage(config.state),
        reserve=config.reserve_mib << 20,
        spool=tallies.by_state(journal, "spool_bytes"),
        journal_bytes=sum(path.stat().st_size for path in files if path.exists()),
        doors=list(_doors(config, read_status(config.state).get("ports", {}))),
        certificates=certificates(config),
        counters=journal.read("SELECT name, value FROM counters ORDER BY name LIMIT ?", (COUNTERS,)),
    )


def _doors(config: Config, ports: Mapping[str, int]) -> Iterator[Door]:
    dicom, web = config.dicom, config.web
    titles = f"AE titles {', '.join(dicom.allowed_ae)}" if dicom.allowed_ae else "any AE title"
    places = f" from {', '.join(dicom.allowed_addresses)}" if dicom.allowed_addresses else ""
    yield _door("DICOM", dicom, ports.get("dicom"), f"{titles}{places}{_secured(dicom, ', with a certificate')}")
    yield _door("HTTP", web, ports.get("web"), f"accounts{_secured(web, '')}")
    if web.stow:
        who = "programs with a token" if web.tokens is not None else "programs with a certificate"
        yield _door(
            "STOW-RS", web, ports.get("web"), who if web.tokens is not None or web.tls is not None else "any program"
        )
    for number, item in enumerate(config.folder, start=1):
        yield Door(f"folder {number}", str(item.path), "whoever may write there", False)


def _door(name: str, door: Listener | Web, port: int | None, who: str) -> Door:
    return Door(name, f"{door.host}:{port or door.port}", who, door.tls is None and not is_loopback(door.host))


def _secured(door: Listener | Web, by: str) -> str:
    if door.tls is not None:
        return f"{by}, by TLS"
    return ", this machine only" if is_loopback(door.host) else ", without TLS"


def audited(visit: Visit) -> Response:
    """The last lines of the audit file, and whether the chain stands."""
    station = visit.desk.station
    lines = audit.tail(station.config.state, station.key, LINES)[::-1]
    faults = [f"Line {line.seq}: {fault}." for line in lines for fault in line.faults]
    broken = visit.journal.fact("audit_broken") or " ".join(faults[:3])
    return visit.page("audit.html.j2", lines=lines, broken=broken)
