"""Metrics and health of a state directory, asked over HTTP as Prometheus and an orchestrator do."""

import asyncio
import json
import os
import re
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from hscc_edge.serve import outbox, studies
from hscc_edge.serve.audit import audit, seal
from hscc_edge.serve.config import Config, Destination, Listener, ServedModel, Tls
from hscc_edge.serve.instances import REPORTED, Receipt, of_study, receive
from hscc_edge.serve.operations import health, latency, metrics
from hscc_edge.serve.outbox import NewDelivery
from hscc_edge.serve.station import Station

UIDS = "1.2.826.0.1.3680043.8.498."


@pytest.fixture
def station(tmp_path: Path) -> Station:
    config = Config(
        state=tmp_path, model=(ServedModel(bundle=tmp_path / "bundle"),), destination=(Destination(name="pacs"),),
        reserve_mib=0, max_waiting=3,
        dicom=Listener(tls=Tls(tmp_path / "own.pem", tmp_path / "own.key", tmp_path / "ca.pem")),
    )  # fmt: skip
    return Station(config, b"k" * 32)


def tell(station: Station, **processes: dict[str, object]) -> None:
    status = {"time": time.time(), "pid": os.getpid(), "processes": processes}
    (station.config.state / "daemon.json").write_text(json.dumps(status))


def one_study(station: Station, number: int, *, finished: bool) -> None:
    journal, study = station.journal(), f"{UIDS}{number}"
    receipt = Receipt(
        f"{study}.1", "1.2.840.10008.5.1.4.1.1.4", f"digest-{number}", f"{study}.2", study, f"file-{number}", 1000,
        "dimse", station.who(study), time.time() - 1,
    )  # fmt: skip
    receive(journal, [receipt])
    if finished:
        delivery = NewDelivery("pacs", "comprehensive-3d-sr")
        report = studies.NewReport("tiny", "d" * 64, f"{study}.9", b"sr", {}, [delivery])
        rows = [(row.id, REPORTED, None) for row in of_study(journal, study)]
        studies.finish(journal, study, rows, [report])
        (item,) = outbox.due(journal, "pacs")
        outbox.stored(journal, item)
        outbox.delivered(journal, item, "committed")
    journal.close()


def get(routes, path: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        door = httpx.ASGITransport(app=Starlette(routes=routes))
        async with httpx.AsyncClient(transport=door, base_url="http://box") as client:
            return await client.get(path)

    return asyncio.run(ask())


def scraped(station: Station) -> tuple[str, dict[str, dict[tuple[str, ...], float]]]:
    answer = get(metrics.routes(station), "/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(value for _, value in sorted(sample.labels.items()))] = sample.value
    return answer.text, found


def test_what_stands_in_the_journal_is_told(station):
    tell(station, work={"pid": 12, "restarts": 2, "silent_s": 0.5})
    one_study(station, 1, finished=True)
    one_study(station, 2, finished=False)
    journal = station.journal()
    journal.count("refused_a700", 4)
    audit(station, "login", account="anna")
    seal(station, journal)
    assert latency.absorb(journal) == 5 and latency.absorb(journal) == 0
    text, found = scraped(station)
    assert found["hscc_edge_instances"] == {("dimse", "received"): 1, ("dimse", "reported"): 1}
    assert found["hscc_edge_deliveries"] == {("pacs", "delivered"): 1}
    assert found["hscc_edge_reports"] == {("tiny", "current"): 1} and found["hscc_edge_studies"] == {(): 2}
    assert found["hscc_edge_refused_total"] == {("A700",): 4} and found["hscc_edge_spool_bytes"] == {(): 2000}
    assert found["hscc_edge_events_total"][("committed",)] == 1
    assert found["hscc_edge_process_restarts"] == {("work",): 2} and found["hscc_edge_up"] == {(): 1}
    assert set(found["hscc_edge_oldest_waiting_seconds"]) == {("", "work")}
    assert found["hscc_edge_audit_lines"] == {(): 1} and found["hscc_edge_audit_broken"] == {(): 0}
    assert found["hscc_edge_certificate_unreadable"][("own", "dicom")] == 1
    counts = found["hscc_edge_latency_seconds_count"]
    assert counts == {("", "report"): 1, ("pacs", "sent"): 1, ("pacs", "committed"): 1}
    assert not re.search(re.escape(UIDS), text) and station.who(f"{UIDS}1") not in text
    journal.close()


def test_a_long_time_is_in_its_bucket_and_a_clock_set_back_is_none(station):
    one_study(station, 1, finished=True)
    journal = station.journal()
    with journal.transaction() as db:
        db.execute("UPDATE events SET time = time + 100 WHERE kind = 'sent'")
        db.execute("UPDATE events SET time = time - 5000 WHERE kind = 'committed'")
    latency.absorb(journal)
    found = {item.stage: item for item in latency.histograms(journal)}
    assert found["sent"].counts[latency.BOUNDS_S.index(300.0)] == 1 and 99 < found["sent"].sum_s < 101
    assert found["committed"].counts[0] == 1 and found["committed"].sum_s == 0
    journal.close()


def asked(station: Station, path: str) -> tuple[int, list[str]]:
    answer = get(health.routes(station), path)
    return answer.status_code, answer.json()["faults"]


def activate(station: Station) -> None:
    journal = station.journal()
    with journal.transaction() as db:
        db.execute("INSERT INTO models VALUES ('d', 'tiny', 1, 'f', 'active', NULL, 0)")
    journal.close()


def test_a_daemon_that_works_is_alive_and_ready(station):
    tell(station, work={"pid": 12, "restarts": 0, "silent_s": 0.5})
    activate(station)
    assert asked(station, "/healthz") == (200, []) and asked(station, "/readyz") == (200, [])


@pytest.mark.parametrize("content", [None, "{", "[]", json.dumps({"time": 5.0, "processes": {}})])
def test_a_silent_daemon_is_not_alive(station, content):
    if content is not None:
        (station.config.state / "daemon.json").write_text(content)
    code, (fault,) = asked(station, "/healthz")
    assert code == 503 and ("start the daemon" in fault or "silent" in fault)
    assert scraped(station)[1]["hscc_edge_up"] == {(): 0}


def test_a_process_that_dies_again_and_again_is_told(station):
    tell(station, work={"pid": None, "restarts": 5, "silent_s": 40.0})
    assert asked(station, "/healthz") == (503, ["the process work has died 5 times: see the log"])


def test_what_hinders_intake_is_told(station):
    tell(station)
    for number in range(3):
        one_study(station, number, finished=False)
    code, faults = asked(station, "/readyz")
    assert code == 503 and len(faults) == 2
    assert "3 instances wait for work" in faults[0] and "0 of 1 models" in faults[1]


def test_a_journal_that_cannot_be_written_is_told(station):
    tell(station)
    (station.config.state / "journal.sqlite").write_bytes(b"no journal" * 1000)
    code, faults = asked(station, "/readyz")
    assert code == 503 and "cannot be written" in faults[0]


def test_the_documentation_names_every_metric_and_no_other(station):
    tell(station, work={"pid": 12, "restarts": 0, "silent_s": 0.5})
    text = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
    made = set(re.findall(r"# TYPE (\S+)", metrics.text(station).decode()))
    table = text.partition("## Metrics")[2]
    assert set(re.findall(r"`(hscc_edge_\w+)`", table)) == made
    assert {name.removesuffix("_bucket") for name in re.findall(r"hscc_edge_\w+", text)} <= made
