"""Sinks with real peers: Orthanc's and our own STOW-RS, MLLP, a FHIR endpoint, dcmtk's storescp, TLS on each."""

import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from authority import Authority
from box import wait_for
from hl7apy.mllp import AbstractHandler, MLLPServer
from orthanc import free_port
from outgoing import QUICK, Desk, archive
from starlette.responses import JSONResponse, Response
from web_peer import Fhir, peer

from hscc_edge.serve import outbox
from hscc_edge.serve.results.delivery import Courier
from hscc_edge.serve.results.outcome import BUSY, REFUSED, TAKEN, UNANSWERED, UNREACHABLE
from hscc_edge.serve.results.sinks import SINKS
from hscc_edge.serve.tls import server_context

pytestmark = pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")


def tried(desk: Desk) -> list[tuple[str, str]]:
    """(kind, reason) of one try at everything that is due."""
    (destination,) = desk.station.config.destination
    items = outbox.due(desk.journal, destination.name)
    return [(found.kind, found.reason) for found in SINKS[destination.kind](items, destination, desk.station)]


def desk_to(root, **settings) -> Desk:
    desk = Desk(root, replace(QUICK, **settings))
    desk.report("1.2.1"), desk.report("1.2.2")
    return desk


def failures(status: int, *reasons: int) -> Response:
    """A STOW-RS response with an instance that failed for each of these reasons."""
    value = [{"00081197": {"vr": "US", "Value": [reason]}} for reason in reasons]
    return JSONResponse({"00081198": {"vr": "SQ", "Value": value}} if reasons else {}, status)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (failures(200), (TAKEN, "")),
        (failures(409, 0x0111), (TAKEN, "")),
        (failures(202, 0xA700), (BUSY, "failure reason 0xa700")),
        (failures(409, 0x0110), (REFUSED, "failure reason 0x0110")),
        (failures(409), (REFUSED, "HTTP status 409")),
        (Response(status_code=400), (REFUSED, "HTTP status 400")),
        (Response(status_code=401), (BUSY, "HTTP status 401")),
        (Response(status_code=500), (UNANSWERED, "HTTP status 500")),
        (Response(status_code=503), (BUSY, "HTTP status 503")),
        (Response("not json", 409), (REFUSED, "HTTP status 409")),
    ],
)
def test_stow_answers(tmp_path, answer, expected):
    seen = []

    def on_post(request, body):
        seen.append((request.url.path, request.headers, body))
        return answer

    token = tmp_path / "token"
    token.write_text("secret\n")
    with peer(on_post) as url:
        desk = desk_to(tmp_path, kind="stow", url=f"{url}/dicom-web", token_file=token)
        assert tried(desk) == [expected] * 2
    path, headers, body = seen[0]
    assert path == "/dicom-web/studies" and headers["authorization"] == "Bearer secret"
    assert headers["content-type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert outbox.due(desk.journal, "archive")[0].content in body


@pytest.mark.parametrize("kind", ["stow", "fhir"])
def test_no_http_server_is_unreachable(tmp_path, kind):
    desk = desk_to(tmp_path, kind=kind, url=f"http://127.0.0.1:{free_port()}")
    assert {outcome for outcome, _ in tried(desk)} == {UNREACHABLE}


def test_fhir_resources_are_created_once_though_the_answer_was_lost(tmp_path):
    fhir = Fhir(fail_after_commit=1)
    with peer(fhir) as url:
        desk = Desk(tmp_path, replace(QUICK, kind="fhir", url=url, attempts=5))
        desk.report()
        courier = Courier(desk.station, desk.journal, desk.station.config.destination[0])
        assert wait_for(lambda: courier.step() == 1)
    assert fhir.posts == 2 and desk.counts() == {"delivered": 1}
    assert sorted(item["resourceType"] for item in fhir.kept.values()) == ["DiagnosticReport", "Observation"]


def test_a_fhir_server_that_does_not_want_it_leaves_a_dead_letter(tmp_path):
    with peer(lambda request, body: Response(status_code=422)) as url:
        desk = Desk(tmp_path, replace(QUICK, kind="fhir", url=url, attempts=1))
        desk.report()
        Courier(desk.station, desk.journal, desk.station.config.destination[0]).step()
    assert desk.counts() == {"dead": 1} and desk.reasons() == ["HTTP status 422"]


@contextmanager
def mllp(answer, context=None):
    """(port, messages) of an MLLP listener by hl7apy."""
    messages = []

    class Handler(AbstractHandler):
        def reply(self):
            messages.append(self.incoming_message)
            text = answer(self.incoming_message.split("|")[9])
            return f"\x0bMSH|^~\\&|x||||20260101||ACK|1|P|2.5.1\r{text}\r\x1c\r"

    server = MLLPServer("127.0.0.1", 0, {"ORU^R01^ORU_R01": (Handler,)})
    server.daemon_threads = True  # a client that stays is not waited for
    if context is not None:  # its handshake is the handler's, so that no client holds up the others
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1], messages
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda number: f"MSA|AA|{number}", (TAKEN, "")),
        (lambda number: f"MSA|CA|{number}", (TAKEN, "")),
        (lambda number: f"MSA|AE|{number}|no", (REFUSED, "acknowledgement AE")),
        (lambda number: f"MSA|AR|{number}", (REFUSED, "acknowledgement AR")),
        (lambda number: "MSA|AA|another", (UNANSWERED, "no acknowledgement")),
        (lambda number: "ZZZ|", (UNANSWERED, "no acknowledgement")),
    ],
)
def test_hl7_acknowledgements(tmp_path, answer, expected):
    with mllp(answer) as (port, messages):
        desk = desk_to(tmp_path, kind="hl7", port=port)
        assert tried(desk) == [expected] * 2
    assert len(messages) == 2 and messages[0].startswith("MSH|") and "|Doe^Jane|" in messages[0]


def test_hl7_without_a_listener_or_an_answer(tmp_path):
    desk = desk_to(tmp_path / "a", kind="hl7", port=free_port())
    assert [kind for kind, _ in tried(desk)] == [UNREACHABLE]
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        desk = desk_to(tmp_path / "b", kind="hl7", port=deaf.getsockname()[1], timeout_s=0.2)
        assert tried(desk) == [(UNANSWERED, "no answer")] * 2


def launch(words: list[str], log) -> tuple[subprocess.Popen, int]:
    """(process, port) of a listener that listens now, or has ended."""
    port = free_port()
    with log.open("ab") as file:
        process = subprocess.Popen([*words, str(port)], stdout=file, stderr=file)
    assert wait_for(lambda: process.poll() is not None or listens(port))
    return process, port


@contextmanager
def storescp(root, *options):
    """dcmtk's storescp on a port; what it gets lies in root/in."""
    folder = root / "in"
    folder.mkdir()
    words = ["storescp", "-aet", "ARCHIVE", "-od", str(folder), *options]
    process, port = launch(words, root / "log")
    for _ in range(4):  # somebody else may have taken the port meanwhile
        if process.poll() is not None:
            process, port = launch(words, root / "log")
    try:
        assert process.poll() is None, (root / "log").read_text()
        yield port, folder
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("options", [(), ("--implicit",), ("--max-pdu", "4096"), ("--sleep-during", "1")])
def test_dcmtk_takes_reports_in_its_own_way(tmp_path, options):
    with storescp(tmp_path, *options) as (port, folder):
        desk = desk_to(tmp_path, port=port)
        assert tried(desk) == [(TAKEN, "")] * 2
        assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("options", [("--refuse",), ("--abort-after",), ("--abort-during",)])
def test_dcmtk_that_refuses_or_aborts_loses_nothing(tmp_path, options):
    with storescp(tmp_path, *options) as (port, _):
        desk = desk_to(tmp_path, port=port)
        began = time.monotonic()
        kinds = [kind for kind, _ in tried(desk)]
        assert time.monotonic() - began < QUICK.timeout_s  # no answer is waited for that cannot come
        assert kinds and kinds[0] in (UNREACHABLE, UNANSWERED)
    with archive() as (port, kept):
        moved = replace(desk.station.config.destination[0], port=port)
        assert Courier(desk.station, desk.journal, moved).step() == 2
    assert len(kept) == 2 and desk.counts() == {"delivered": 2}


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    """(ours, a stranger)."""
    root = tmp_path_factory.mktemp("tls")
    return Authority(root / "ours"), Authority(root / "strange", "stranger")


@contextmanager
def secured(kind: str, root, tls):
    """The settings of a destination of this kind that asks for certificates of our authority."""
    if kind == "stow":
        with peer(lambda request, body: failures(200), server_context(tls)) as url:
            yield {"url": url}
    elif kind == "hl7":
        with mllp(lambda number: f"MSA|AA|{number}", server_context(tls)) as (port, _):
            yield {"port": port}
    else:
        options = ("+tls", str(tls.key), str(tls.certificate), "+cf", str(tls.authorities))
        with storescp(root, *options) as (port, _):
            yield {"port": port}


@pytest.mark.parametrize("kind", ["dicom", "stow", "hl7"])
def test_mutual_tls_and_no_delivery_to_a_stranger(tmp_path, authorities, kind):
    ours, strange = authorities
    peers = {"ours": ours.sign("peer"), "strange": strange.sign("peer")}
    own = ours.sign("edge")
    for name, tls in peers.items():
        (tmp_path / name).mkdir()
        with secured(kind, tmp_path / name, tls) as settings:
            desk = desk_to(tmp_path / name, kind=kind, tls=own, **settings)
            kinds = {found for found, _ in tried(desk)}
        assert kinds == ({TAKEN} if name == "ours" else {UNREACHABLE}), name
