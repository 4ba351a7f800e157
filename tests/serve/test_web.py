"""The HTTP door's process: TLS, who programs are, limits on connections and time, events, and a quick end."""

import json
import socket
import ssl
import subprocess
import threading
import time
from dataclasses import replace

import filled
import httpx
import pytest
from authority import Authority
from box import Box, wait_for

from hscc_edge.errors import ConfigError
from hscc_edge.serve.config import Tls, Web
from hscc_edge.serve.doors.receiver import receive
from hscc_edge.serve.doors.tokens import add_token
from hscc_edge.serve.web import connections, desk, live, views
from hscc_edge.serve.web import server as web


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """An empty station's door on loopback, without accounts."""
    found = filled.station(tmp_path_factory.mktemp("plain"), web=Web(enabled=True, port=0, stow=True))
    with filled.client(found) as browser:
        yield found, browser


def test_every_answer_says_what_browsers_may_do_with_it(plain):
    _, browser = plain
    for path in ("/", "/metrics", "/nothing", "/static/live.js", "/dicom-web/studies", "/sign-in"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == ("no-cache" if path.startswith("/static/") else "no-store")
        assert "server" not in headers


def test_pages_have_no_inline_script_or_style(plain):
    _, browser = plain
    page = browser.get("/").text
    assert "style=" not in page and "<style" not in page and "onclick" not in page and page.count("<script") == 1


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_programs_on_this_machine_need_no_token(path, plain):
    _, browser = plain
    assert browser.get(path).status_code in (200, 503)
    assert browser.post(path).status_code == 405


def test_readiness_costs_one_commit_however_often_it_is_asked(monkeypatch):
    made = []

    def answer(request):
        made.append(1)
        return httpx.Response(200)

    route = web._calm(web.Route("/readyz", answer))
    answers = {id(route.endpoint(None)) for _ in range(50)}
    assert len(made) == len(answers) == 1
    monkeypatch.setattr(web, "CALM_S", -1.0)
    route.endpoint(None)
    assert len(made) == 2


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
def test_a_name_that_was_bound_to_loopback_opens_nothing(host, status, plain):
    _, browser = plain
    assert browser.get("/", headers={"Host": host}).status_code == status


def test_a_token_opens_metrics_and_stow_and_nothing_else(tmp_path):
    tokens = tmp_path / "tokens"
    token = add_token(tokens, "prometheus")
    found = filled.station(tmp_path, web=Web(enabled=True, port=0, stow=True, tokens=tokens))
    filled.add_accounts(found)
    with filled.client(found) as browser:
        for path in ("/metrics", "/dicom-web/studies"):
            assert browser.get(path).status_code == 401
            assert browser.get(path, headers={"Authorization": f"Bearer {token}x"}).status_code == 401
        bearer = {"Authorization": f"Bearer {token}"}
        assert browser.get("/metrics", headers=bearer).status_code == 200
        assert browser.post("/dicom-web/studies", headers=bearer).status_code == 415
        assert browser.get("/", headers=bearer).status_code == 303
        tokens.write_text("spoilt")
        assert browser.get("/metrics", headers=bearer).status_code == 401


def context(authority: Authority, **settings) -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=authority.certificate)
    for name, value in settings.items():
        setattr(found, name, value)
    return found


def test_with_tls_people_sign_in_and_programs_show_a_certificate(authority, tmp_path):
    own, scanner = authority.sign("box"), authority.sign("scanner")
    stranger = Authority(tmp_path / "other", "other").sign("stranger")
    found = filled.station(tmp_path, web=Web(enabled=True, port=0, stow=True, tls=own))
    filled.add_accounts(found)
    with filled.client(found, verify=context(authority)) as browser:
        page = browser.get("/sign-in")
        assert "__Host-hscc" in browser.cookies and "Secure" in page.headers["set-cookie"]
        assert browser.get("/metrics").status_code == browser.post("/dicom-web/studies").status_code == 403
        known, other = context(authority), context(authority)
        known.load_cert_chain(scanner.certificate, scanner.key)
        other.load_cert_chain(stranger.certificate, stranger.key)
        with httpx.Client(base_url=browser.base_url, verify=known) as program:
            assert program.get("/metrics").status_code == 200
            assert program.post("/dicom-web/studies").status_code == 415
            assert program.get("/").status_code == 303
        with httpx.Client(base_url=browser.base_url, verify=other) as program, pytest.raises(httpx.TransportError):
            program.get("/metrics")
        with (
            httpx.Client(base_url=str(browser.base_url).replace("https", "http")) as program,
            pytest.raises(httpx.TransportError),
        ):
            program.get("/")
        port = browser.base_url.port
        old = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]
        done = subprocess.run(old, input=b"", capture_output=True, timeout=30)
        assert done.returncode != 0 and b"BEGIN CERTIFICATE" not in done.stdout


def test_beyond_loopback_without_an_account_nothing_is_shown(tmp_path):
    found = filled.station(tmp_path, web=Web(enabled=True, host="0.0.0.0", port=0, insecure=True))
    with filled.client(found) as browser:
        assert browser.get("/").headers["location"] == "/sign-in"
        page = browser.get("/sign-in").text
        assert "hscc-edge accounts add" in page and "not encrypted" in page


def test_slow_and_idle_peers_are_cut_off_and_others_served(plain, monkeypatch):
    _, browser = plain
    monkeypatch.setattr(connections, "HEADER_S", 1.0)
    monkeypatch.setattr(connections, "MOST_FROM_ONE", 40)
    slow = [socket.create_connection(("127.0.0.1", browser.base_url.port)) for _ in range(60)]
    for peer in slow:
        peer.sendall(b"GET / HTTP/1.1\r\nX-A: ")

    def closed(peer: socket.socket) -> bool:
        peer.settimeout(0.01)
        try:
            return peer.recv(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    assert wait_for(lambda: all(closed(peer) for peer in slow), 20)
    for peer in slow:
        peer.close()
    assert browser.get("/").status_code == 200


class Peer:
    """What a sweep looks at of a connection."""

    def __init__(self, cycle=None, unread=0, address="10.0.0.1"):
        self.cycle, self.client, self.unread, self.aborted = cycle, (address, 1), unread, False
        self.transport = self

    def get_write_buffer_size(self):
        return self.unread

    def abort(self):
        self.aborted = True


def test_a_peer_that_does_not_read_its_answer_is_cut_off_and_one_that_works_is_not():
    answering = type("Cycle", (), {"response_complete": False})()
    stuck, busy, reading = Peer(answering, 100), Peer(answering), Peer(answering, 50)
    known = connections.sweep([stuck, busy, reading], {}, 0.0)
    reading.unread = 40
    known = connections.sweep([stuck, busy, reading], known, 20.0)
    connections.sweep([stuck, busy, reading], known, connections.STUCK_S + 1)
    assert (stuck.aborted, busy.aborted, reading.aborted) == (True, False, False)


def test_headers_that_never_end_are_refused(plain):
    _, browser = plain
    with socket.create_connection(("127.0.0.1", browser.base_url.port)) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long: " + b"x" * 40_000)
        peer.settimeout(20)
        assert b"400" in peer.recv(100)


def test_a_form_that_trickles_is_given_up(plain, monkeypatch):
    monkeypatch.setattr(desk, "FORM_S", 0.5)
    _, browser = plain
    with socket.create_connection(("127.0.0.1", browser.base_url.port)) as peer:
        peer.sendall(b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n"
                     b"Content-Type: application/x-www-form-urlencoded\r\n\r\ncsrf=")  # fmt: skip
        peer.settimeout(20)
        assert b"408" in peer.recv(100)


def test_a_fault_of_ours_tells_no_more_than_its_kind(tmp_path, monkeypatch, caplog):
    def broken(*values):
        raise RuntimeError("Doe^Jane 1.2.3.4")

    monkeypatch.setattr(views, "in_hand", broken)
    with filled.client(filled.station(tmp_path)) as browser:
        answer = browser.get("/")
        assert answer.status_code == 500 and "Doe" not in answer.text
    assert "RuntimeError" in caplog.text and "Doe" not in caplog.text


def events(port: int, found: list[str], stop: threading.Event) -> None:
    with httpx.stream("GET", f"http://127.0.0.1:{port}/live", timeout=30) as stream:
        for line in stream.iter_lines():
            found.append(line)
            if stop.is_set():
                return


def test_a_page_is_told_of_a_commit_and_its_stream_ends_with_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TICK_S", 0.1)
    found, told, stop = filled.station(tmp_path), [], threading.Event()
    journal = found.journal()
    with filled.served(found) as port:
        listener = threading.Thread(target=events, args=(port, told, stop))
        listener.start()
        assert wait_for(lambda: "retry: 2000" in told, 20)
        filled.add_study(found, journal, 1)
        assert wait_for(lambda: "event: changed" in told, 20)
        asked = time.monotonic()
    listener.join(10)
    journal.close()
    assert not listener.is_alive() and time.monotonic() - asked < 20


def test_a_stream_ends_with_its_session(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TICK_S", 0.05)
    monkeypatch.setattr(live, "ALIVE_S", 0.1)
    found, told, stop = filled.station(tmp_path), [], threading.Event()
    with filled.served(found) as port:
        listener = threading.Thread(target=events, args=(port, told, stop))
        listener.start()
        assert wait_for(lambda: ": alive" in told, 20)
        filled.add_accounts(found)
        assert wait_for(lambda: "event: ended" in told, 20)
        listener.join(10)
        assert not listener.is_alive()


def test_so_many_streams_and_no_more(plain, monkeypatch):
    monkeypatch.setattr("hscc_edge.serve.web.dashboard.MOST_STREAMS", 0)
    _, browser = plain
    answer = browser.get("/live")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "60"


def test_certificates_that_cannot_be_used_are_told(tmp_path):
    found = filled.station(tmp_path, web=Web(enabled=True, tls=Tls(*[tmp_path / "none.pem"] * 3)))
    with socket.socket() as door, pytest.raises(ConfigError, match="cannot be used"):
        web.run(replace(found, sockets={"web": door}))


def test_the_daemon_serves_it(dense, tmp_path):

    with receive(tmp_path / "archive") as archive:
        box = Box(tmp_path, dense, archive, more="[web]\nenabled = true\nport = 0\n")
        with box.running():
            status = json.loads((tmp_path / "state" / "daemon.json").read_text())
            with httpx.Client(base_url=f"http://127.0.0.1:{status['ports']['web']}", timeout=30) as browser:
                assert browser.get("/healthz").json()["well"]
                assert "Nothing needs attention" in browser.get("/").text
    assert "Traceback" not in box.log.read_text()
