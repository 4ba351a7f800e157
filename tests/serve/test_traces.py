"""Traces: a study's timeline as spans, over OTLP to a real HTTP server, and no identifier in them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from entries import ROOT, finished, make_station, received, sent
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from hscc_edge.serve import outbox, studies
from hscc_edge.serve.operations.traces import Tracer, open_tracer


@pytest.fixture
def station(tmp_path):
    return make_station(tmp_path)


@pytest.fixture
def journal(station):
    opened = station.journal()
    yield opened
    opened.close()


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes], list[int]]]:
    """(endpoint, what was posted, the answers to give, 200 if none is left)."""
    posted: list[bytes] = []
    answers: list[int] = []

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            code = answers.pop(0) if answers else 200
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if code == 200:
                posted.append(body)
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", posted, answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_study_s_spans(station, journal):
    exporter = InMemorySpanExporter()
    tracer = Tracer(exporter)
    study = received(station, journal, 1, b"x" * 100, images=2)
    received(station, journal, 2, b"y" * 100)
    studies.claim(journal, [study])
    studies.postpone(journal, study, 0.0, "OSError", counts=False)
    finished(journal, study, sends=2)
    assert tracer.step(journal) == 0  # it is not sent yet
    sent(journal)
    assert tracer.step(journal) == 1 and tracer.step(journal) == 0
    spans = {}
    for span in exporter.get_finished_spans():
        spans.setdefault(span.name, []).append(span)
    (root,), (arrival,), work = spans["study"], spans["receive"], spans["work"]
    assert root.attributes == {"study": station.who(study)} and arrival.attributes["instances"] == 2
    assert [span.status.description for span in work] == ["OSError", None]
    assert len(spans["deliver"]) == len(spans["commit"]) == 2
    for span in (arrival, *work, *spans["deliver"], *spans["commit"]):
        assert span.parent.span_id == root.context.span_id and span.context.trace_id == root.context.trace_id
        assert root.start_time <= span.start_time <= span.end_time <= root.end_time
    assert arrival.end_time <= work[0].start_time and work[1].end_time == spans["deliver"][0].start_time
    tracer.close()


def test_a_dead_letter_is_a_failed_span(station, journal):
    exporter = InMemorySpanExporter()
    tracer = Tracer(exporter)
    study = received(station, journal, 1, b"x" * 100)
    finished(journal, study)
    (item,) = outbox.due(journal, "pacs")
    outbox.bury(journal, item, "status 0xa900")
    assert tracer.step(journal) == 1
    (failed,) = [span for span in exporter.get_finished_spans() if not span.status.is_unset]
    assert failed.name == "deliver" and failed.status.description == "status 0xa900"
    tracer.close()


def test_they_go_by_otlp_and_wait_for_a_collector_that_refuses(station, journal, caplog):
    with collector() as (endpoint, posted, answers):
        answers.append(400)
        tracer = open_tracer(endpoint)
        finished(journal, received(station, journal, 1, b"x" * 100))
        sent(journal)
        assert tracer.step(journal) == 0 and tracer.step(journal) == 0 and posted == []
        assert caplog.text.count("traces_not_taken") == 1
        tracer._not_before = 0.0
        assert tracer.step(journal) == 1
        tracer.close()
    (body,) = posted
    request = ExportTraceServiceRequest.FromString(body)
    names = [span.name for found in request.resource_spans for scope in found.scope_spans for span in scope.spans]
    assert sorted(names) == ["commit", "deliver", "receive", "study", "work"] and ROOT.encode() not in body
