"""Each study's way as an OpenTelemetry trace, made of its timeline when it has ended; by choice (`traces` in the TOML).

Traces are a convenience: while their collector is away they wait, and what is older than `MOST_BEHIND` events is
skipped. A study is named in them by its keyed hash.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hscc_edge import __version__
from hscc_edge.errors import extra
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.operations.retention import ENDED
from hscc_edge.serve.timeline import Event, timeline

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

LOG = logging.getLogger(__name__)
MARKER = "traces_event"
ENDS = ("no-result", "sent", "committed", "dead")
AT_ONCE, MOST_BEHIND = 200, 50_000
TIMEOUT_S, PAUSE_S = 5, 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """One span: what was done, from when to when, in seconds since 1970."""

    name: str
    began: float
    ended: float
    facts: dict[str, Any] = field(default_factory=dict)
    failed: str = ""


class Tracer:
    """Sends traces to one collector."""

    def __init__(self, exporter: SpanExporter) -> None:
        with extra("integrations"):
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import SimpleSpanProcessor
            from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        self._made, self._exporter, self._not_before = InMemorySpanExporter(), exporter, 0.0
        resource = Resource({"service.name": "hscc-edge", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._made))

    def step(self, journal: Journal) -> int:
        """Send the traces of studies that have ended since the last call; returns how many."""
        if time.monotonic() < self._not_before:
            return 0
        last, newest = int(journal.fact(MARKER) or 0), _newest(journal)
        if newest == last:
            return 0
        last = max(last, newest - MOST_BEHIND)
        rows = journal.read("SELECT id, study, kind FROM events WHERE id > ? ORDER BY id LIMIT ?", (last, AT_ONCE))
        ended = dict.fromkeys(study for _, study, kind in rows if kind in ENDS and study is not None)
        traced = [study for study in ended if journal.read(f"SELECT 1 WHERE {ENDED}", (study, study))]
        for study in traced:
            self._make(journal, study)
        if not self._export():
            self._not_before = time.monotonic() + PAUSE_S
            LOG.warning("event=traces_not_taken again_s=%.0f", PAUSE_S)
            return 0
        journal.set_fact(MARKER, str(rows[-1][0]))
        return len(traced)

    def close(self) -> None:
        """End."""
        self._exporter.shutdown()
        self._provider.shutdown()

    def _export(self) -> bool:
        with extra("integrations"):
            from opentelemetry.sdk.trace.export import SpanExportResult
        spans = self._made.get_finished_spans()
        self._made.clear()
        return not spans or self._exporter.export(spans) is SpanExportResult.SUCCESS

    def _make(self, journal: Journal, study: str) -> None:
        with extra("integrations"):
            from opentelemetry.trace import Status, StatusCode, set_span_in_context
        ((key,),) = journal.read("SELECT key FROM studies WHERE uid = ?", (study,))
        found = steps(journal, study)
        if not found:
            return
        tracer = self._provider.get_tracer("hscc_edge")
        root = tracer.start_span("study", start_time=_ns(found[0].began), attributes={"study": key})
        for item in found:
            span = tracer.start_span(
                item.name, context=set_span_in_context(root), start_time=_ns(item.began), attributes=item.facts
            )
            if item.failed:
                span.set_status(Status(StatusCode.ERROR, item.failed))
            span.end(_ns(item.ended))
        root.end(_ns(max(item.ended for item in found)))


def open_tracer(endpoint: str) -> Tracer:
    """A tracer that sends by OTLP over HTTP."""
    with extra("integrations"):
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    return Tracer(OTLPSpanExporter(endpoint, timeout=TIMEOUT_S))


def steps(journal: Journal, study: str) -> list[Step]:
    """What was done with a study since its first or its latest instances came."""
    events = timeline(journal, study)
    begins = [number for number, event in enumerate(events) if event.kind in ("received", "reopened")]
    if not begins:
        return []
    events = events[begins[-1] :]
    ((images, last),) = journal.read(
        "SELECT COUNT(*), MAX(received) FROM instances WHERE study = ? AND received >= ?", (study, events[0].time - 1)
    )
    arrival = Step("receive", events[0].time, max(events[0].time, last or 0.0), {"instances": images})
    return [arrival, *_work(events), *_deliver(events)]


def _work(events: Sequence[Event]) -> Iterator[Step]:
    began: Event | None = None
    for event in events:
        if event.kind == "started":
            began = event
        elif began is not None and event.kind in ("reported", "no-result", "retried"):
            failed = str(event.detail.get("reason", "")) if event.kind == "retried" else ""
            yield Step("work", began.time, event.time, _plain(event), failed)
            began = None


def _deliver(events: Sequence[Event]) -> Iterator[Step]:
    made = next((event.time for event in events if event.kind == "reported"), events[0].time)
    sent: dict[object, float] = {}
    for event in events:
        to = (event.detail.get("destination"), event.detail.get("form"))
        if event.kind == "sent":
            sent[to] = event.time
            yield Step("deliver", made, event.time, _plain(event))
        elif event.kind == "committed":
            yield Step("commit", sent.get(to, made), event.time, _plain(event))
        elif event.kind == "dead":
            yield Step("deliver", made, event.time, _plain(event), str(event.detail.get("reason", "")))


def _plain(event: Event) -> dict[str, Any]:
    return {key: value for key, value in event.detail.items() if isinstance(value, (str, int, float))}


def _newest(journal: Journal) -> int:
    return int(journal.read("SELECT COALESCE(MAX(id), 0) FROM events")[0][0])


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
