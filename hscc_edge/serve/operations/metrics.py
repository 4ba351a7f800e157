"""Figures for Prometheus, read from the journal when they are asked for: there is no process that could lose them.

No label holds an identifier: states, doors, and names of the configuration only.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from hscc_edge import __version__
from hscc_edge.errors import StorageError, extra
from hscc_edge.serve import tallies
from hscc_edge.serve.audit import head
from hscc_edge.serve.config import Config
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.operations import health, latency
from hscc_edge.serve.operations.certificates import certificates
from hscc_edge.serve.station import Station

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

PREFIX = "hscc_edge_"
Rows = Sequence[tuple[Sequence[str], float]]


def routes(station: Station) -> list[Route]:
    """/metrics in Prometheus' text format."""
    with extra("device"):
        from prometheus_client import CONTENT_TYPE_LATEST
        from starlette.responses import Response
        from starlette.routing import Route

    def metrics(request: Request) -> Response:
        return Response(text(station), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [Route("/metrics", metrics, methods=["GET"])]


def text(station: Station) -> bytes:
    """All figures as they stand now; time and memory grow with neither studies nor years."""
    with extra("device"):
        from prometheus_client import CollectorRegistry, generate_latest
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(station))
    return bytes(generate_latest(registry))


class _Collector:
    """What prometheus_client asks for its figures."""

    def __init__(self, station: Station) -> None:
        self._station = station

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        journal = self._station.journal()
        try:
            for part in PARTS:
                yield from part(self._station, journal)
        finally:
            journal.close()


def _gauge(name: str, help_text: str, labels: Sequence[str], rows: Rows, *, counts: bool = False) -> Any:
    with extra("device"):
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    family = (CounterMetricFamily if counts else GaugeMetricFamily)(PREFIX + name, help_text, labels=labels)
    for values, number in rows:
        family.add_metric(list(values), number)
    return family


def _tallied(station: Station, journal: Journal) -> Iterator[Any]:
    def rows(what: str) -> Rows:
        return [(key, number) for key, number in sorted(tallies.tally(journal, what).items())]

    yield _gauge("instances", "Kept instances.", ("state", "door"), rows("instances"))
    yield _gauge("deliveries", "Results to be sent and sent.", ("state", "destination"), rows("deliveries"))
    yield _gauge("reports", "Reports.", ("state", "model"), rows("reports"))
    yield _gauge("studies", "Studies that were ever received.", (), [((), sum(n for _, n in rows("studies")))])
    kept = tallies.by_state(journal, "spool_bytes").get("kept", 0)
    yield _gauge("spool_bytes", "Received files that are kept.", (), [((), kept)])


def _counted(station: Station, journal: Journal) -> Iterator[Any]:
    refused = journal.read("SELECT name, value FROM counters WHERE name >= 'refused_' AND name < 'refused`'")
    rows = [((name.partition("_")[2].upper(),), value) for name, value in refused]
    yield _gauge("refused", "Refused instances by DIMSE status.", ("status",), rows, counts=True)
    rows = [((kind,), number) for kind, number in sorted(latency.events(journal).items())]
    yield _gauge("events", "What happened to studies.", ("kind",), rows, counts=True)


def _latencies(station: Station, journal: Journal) -> Iterator[Any]:
    with extra("device"):
        from prometheus_client.core import HistogramMetricFamily
    family = HistogramMetricFamily(
        PREFIX + "latency_seconds",
        "From the last byte to the report, from that to its acceptance, from that to its commitment.",
        labels=("stage", "destination"),
    )
    for item in latency.histograms(journal):
        sums = [sum(item.counts[: number + 1]) for number in range(len(item.counts))]
        names = [*(f"{bound:g}" for bound in latency.BOUNDS_S), "+Inf"]
        family.add_metric([item.stage, item.destination], list(zip(names, sums, strict=True)), item.sum_s)
    yield family


def _waiting(station: Station, journal: Journal) -> Iterator[Any]:
    now, rows = time.time(), []
    work = journal.read(
        "SELECT MIN(last_received) FROM studies WHERE uid IN (SELECT DISTINCT study FROM instances "
        "WHERE state = 'received')"
    )
    rows += [(("work", ""), now - oldest) for (oldest,) in work if oldest is not None]
    sending = journal.read(
        "SELECT d.destination, MIN(r.created) FROM deliveries AS d JOIN reports AS r ON r.id = d.report "
        "WHERE d.state IN ('pending', 'stored') GROUP BY d.destination"
    )
    rows += [(("delivery", destination), now - oldest) for destination, oldest in sending]
    yield _gauge("oldest_waiting_seconds", "Age of what waits longest.", ("queue", "destination"), rows)


def _machine(station: Station, journal: Journal) -> Iterator[Any]:
    config = station.config
    disk = shutil.disk_usage(config.state)
    yield _gauge("disk_free_bytes", "Free space of the state volume.", (), [((), disk.free)])
    yield _gauge("disk_bytes", "Size of the state volume.", (), [((), disk.total)])
    yield _gauge("disk_reserve_bytes", "Below it instances are refused.", (), [((), config.reserve_mib << 20)])
    sizes = [((path.suffix.lstrip("."),), path.stat().st_size) for path in _files(config) if path.exists()]
    yield _gauge("journal_bytes", "Size of the journal's files.", ("file",), sizes)
    found = certificates(config)
    ends = [((item.used_for, item.part), item.days) for item in found if item.days is not None]
    yield _gauge("certificate_days", "Days until a certificate ends.", ("used_for", "part"), ends)
    bad = [((item.used_for, item.part), float(item.days is None)) for item in found]
    yield _gauge("certificate_unreadable", "Whether a certificate cannot be read.", ("used_for", "part"), bad)
    yield _gauge("build_info", "The version.", ("version",), [((__version__,), 1.0)])


def _files(config: Config) -> list[Any]:
    path = config.state / "journal.sqlite"
    return [path, path.with_name("journal.sqlite-wal")]


def _processes(station: Station, journal: Journal) -> Iterator[Any]:
    try:
        status = health.read_status(station.config)
    except StorageError:
        yield _gauge("up", "Whether the supervisor tells of itself.", (), [((), 0.0)])
        return
    yield _gauge("up", "Whether the supervisor tells of itself.", (), [((), 1.0)])
    age_s, processes = time.time() - status["time"], status["processes"].items()
    runs = [((name,), float(facts["pid"] is not None)) for name, facts in processes]
    yield _gauge("process_up", "Whether a process runs.", ("process",), runs)
    restarts = [((name,), facts["restarts"]) for name, facts in processes]
    yield _gauge("process_restarts", "Deaths in a row of a process.", ("process",), restarts)
    silent = [((name,), facts["silent_s"] + age_s) for name, facts in processes]
    yield _gauge("process_silent_seconds", "Since a process's last sign of life.", ("process",), silent)


def _models(station: Station, journal: Journal) -> Iterator[Any]:
    rows = journal.read("SELECT name, digest, version, state FROM models ORDER BY name, since")
    found = [((name, digest[:12], str(version), state), 1.0) for name, digest, version, state in rows]
    alarms = journal.read("SELECT name, value FROM facts WHERE name >= 'drift:' AND name < 'drift;'")
    drifted = [
        ((name.partition(":")[2], text), 1.0) for name, value in alarms for text in json.loads(value)["features"]
    ]
    yield _gauge("drift_alarm", "Features unlike the calibration cohort's.", ("model", "feature"), drifted)
    yield _gauge("model_info", "Installed models.", ("model", "digest", "version", "state"), found)


def _audit(station: Station, journal: Journal) -> Iterator[Any]:
    known = head(journal, station.key)
    yield _gauge("audit_lines", "Lines of the audit file.", (), [((), max(0, known.seq) if known else 0)])
    broken = float(journal.fact("audit_broken") is not None)
    yield _gauge("audit_broken", "Whether the audit file was tampered with.", (), [((), broken)])
    (waiting,) = journal.read("SELECT COUNT(*) FROM audit_messages")[0]
    yield _gauge("audit_messages_waiting", "Messages that the audit repository has not got.", (), [((), waiting)])


PARTS: tuple[Callable[[Station, Journal], Iterator[Any]], ...] = (
    _tallied, _counted, _latencies, _waiting, _machine, _processes, _models, _audit,
)  # fmt: skip
