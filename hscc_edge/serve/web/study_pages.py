"""Pages of studies and results: what is happening, what came of each study, and what could not be sent."""

from __future__ import annotations

import json
import logging
import re

from hscc_edge.errors import extra
from hscc_edge.serve import outbox, tallies
from hscc_edge.serve import studies as study_table
from hscc_edge.serve.audit import audit
from hscc_edge.serve.results.result import read_result
from hscc_edge.serve.timeline import Event, timeline
from hscc_edge.serve.web import views, words
from hscc_edge.serve.web.desk import Visit, number

with extra("device"):
    from starlette.exceptions import HTTPException
    from starlette.responses import RedirectResponse, Response

LOG = logging.getLogger(__name__)
UID = re.compile(r"[0-9]+(\.[0-9]+)+")
RECENT = 15
FILTERS = {
    "": "all", views.OPEN: "open", views.REPORTED: "reported", views.ASIDE: "no result", views.DEAD: "dead letters",
}  # fmt: skip


def now(visit: Visit) -> Response:
    """What is happening."""
    journal, quiet_s = visit.journal, visit.desk.config.study.quiet_s
    rows = journal.read(
        "SELECT e.time, e.kind, e.detail, s.key FROM (SELECT * FROM events ORDER BY id DESC LIMIT ?) AS e "
        "LEFT JOIN studies AS s ON s.uid = e.study ORDER BY e.id DESC",
        (RECENT,),
    )
    recent = [(at, key, words.lines([Event(at, kind, json.loads(detail))])[0]) for at, kind, detail, key in rows]
    return visit.page(
        "now.html.j2",
        queue=views.queue(journal),
        totals={name: tallies.by_state(journal, name) for name in ("instances", "deliveries", "studies")},
        in_hand=views.in_hand(journal, quiet_s),
        recent=recent,
    )


def studies(visit: Visit) -> Response:
    """Studies, searched by key or filtered by state."""
    quiet_s, key, state = visit.desk.config.study.quiet_s, visit.asked("key").strip().lower(), visit.asked("state")
    if key:
        page = views.Page(views.search(visit.journal, key, quiet_s))
    elif state in FILTERS:
        page = views.studies(visit.journal, state, number(visit.asked("before")), quiet_s)
    else:
        raise HTTPException(400, "There is no such state: choose one of the list's own.")
    return visit.page("studies.html.j2", page=page, key=key, state=state, filters=FILTERS)


def find(visit: Visit) -> Response:
    """A key, or a Study Instance UID, which is hashed here and goes into no address."""
    wanted = visit.given("q").strip()
    if UID.fullmatch(wanted):
        key = visit.desk.station.who(wanted)
        return RedirectResponse(
            f"/studies/{key}" if study_table.uid_of(visit.journal, key) else f"/studies?key={key}", 303
        )
    if not views.KEY.fullmatch(wanted.lower()):
        raise HTTPException(
            400, "A key has up to 12 of the characters 0-9 and a-f; a Study Instance UID has digits and dots."
        )
    return RedirectResponse(f"/studies?key={wanted.lower()}", 303)


def study(visit: Visit) -> Response:
    """One study from its first byte to the commitment of its report."""
    key = visit.request.path_params["key"]
    uid = study_table.uid_of(visit.journal, key) if views.KEY.fullmatch(key) else None
    if uid is None:
        raise HTTPException(404, "There is no study of this key here.")
    found = [
        (report, visit.desk.station.who(report.sop), visit.desk.station.who(report.predecessor or ""), _said(report))
        for report in views.reports(visit.journal, uid)
    ]
    return visit.page(
        "study.html.j2",
        study=views.study(visit.journal, uid, visit.desk.config.study.quiet_s),
        lines=words.lines(timeline(visit.journal, uid)),
        groups=views.groups(visit.journal, uid),
        reports=found,
        deliveries=views.deliveries(visit.journal, uid),
    )


def _said(report: views.ReportRow) -> list[str]:
    """What a report says, without anything about the patient."""
    try:
        return read_result(report.content).lines()[1:]
    except Exception as error:  # a report of another version, or a damaged one: the page shows the rest
        LOG.warning("event=report_unreadable reason=%s", type(error).__name__)
        return ["This report cannot be read."]


def outgoing(visit: Visit) -> Response:
    """Dead letters, and what is still to be sent."""
    dead = views.dead_letters(visit.journal, number(visit.asked("before"), int))
    return visit.page(
        "outbox.html.j2",
        dead=dead[: views.PAGE],
        older=dead[views.PAGE - 1].id if len(dead) > views.PAGE else None,
        unsent=views.unsent(visit.journal),
        totals=tallies.by_state(visit.journal, "deliveries"),
        by_destination=tallies.tally(visit.journal, "deliveries"),
        done=number(visit.asked("done"), int),
    )


def redrive(visit: Visit) -> Response:
    """Send dead letters again: those that were ticked, or all."""
    ticked = [number(text, int) for text in visit.form.get("id", [])]
    chosen = None if visit.given("all") else [item for item in ticked if item is not None]
    if chosen == []:
        raise HTTPException(400, "Tick at least one dead letter.")
    told = len(chosen) if chosen is not None else "all"
    audit(visit.desk.station, "redrive", account=visit.session.account, chosen=told)
    count = outbox.redrive(visit.journal, chosen)
    LOG.info("event=redriven count=%d by=dashboard", count)
    return RedirectResponse(f"/outbox?done={count}", 303)
