"""A daemon as it is operated: told to systemd, logged as JSON, audited here and at a repository, backed up while it
works, reloaded, and asked for its health."""

import json
import multiprocessing
import signal
import socket
import subprocess
import sys
import urllib.request
from xml.etree.ElementTree import fromstring

import pydicom
import pytest
from authority import Authority
from box import Box, storescu, wait_for
from repository import receiving

from hscc_edge import durable
from hscc_edge.errors import StorageError
from hscc_edge.serve.config_file import read_config
from hscc_edge.serve.daemon import Daemon
from hscc_edge.serve.doors.receiver import receive
from hscc_edge.serve.operations.soundness import check
from hscc_edge.serve.station import visit

MORE = """
[log]
format = "json"
file = "serve.log"
[retention]
max_gib = 0
[audit]
host = "127.0.0.1"
port = {port}
[audit.tls]
certificate = "{tls.certificate}"
key = "{tls.key}"
authorities = "{tls.authorities}"
"""


def command(config, *words: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "hscc_edge", *words[:-1], str(config), words[-1]], capture_output=True, text=True
    )
    return done.returncode, done.stdout


def kinds(messages: list[bytes]) -> list[str]:
    found = [fromstring(message.partition(b"\xef\xbb\xbf")[2]) for message in messages]
    return [item.find("EventIdentification/EventID").get("csd-code") for item in found]


def heard(manager: socket.socket) -> list[bytes]:
    """What systemd was told since the last call, the first line of each."""
    manager.setblocking(False)
    words: list[bytes] = []
    while True:
        try:
            words.append(manager.recv(100).split(b"\n")[0])
        except BlockingIOError:
            return words


def test_a_day_of_the_daemon(tmp_path, phantom, dense, monkeypatch):
    items = next(iter(phantom.cases("study").values()))
    files = [phantom.path(item) for item in items]
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    authority = Authority(tmp_path / "ca")
    tls = authority.sign("box")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        receiving(authority.sign("audit")) as repository,
        receive(tmp_path / "archive") as archive,
    ):
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        box = Box(tmp_path, dense, archive, more=MORE.format(port=repository.port, tls=tls))
        process, port = box.start()
        try:
            assert manager.recv(100) == b"READY=1"
            assert wait_for(lambda: "110100" in kinds(repository.messages))
            assert storescu(port, files[:2]) == set(files[:2])
            assert wait_for(lambda: kinds(repository.messages).count("110104") == 2)
            station = visit(read_config(box.config))
            assert command(box.config, "state", "export", f"--out={tmp_path / 'copy'}")[0] == 0
            code, out = command(box.config, "serve", "--health")
            assert code == 0 and out == "alive and ready\n"
            box.config.write_text(box.config.read_text().replace("max_gib = 0", "max_gib = 1e-9"))
            process.send_signal(signal.SIGHUP)
            assert wait_for(lambda: "110105" in kinds(repository.messages))
            assert storescu(port, files[2:]) == set(files[2:])
            assert wait_for(lambda: "no-result" in box.states())
            words = heard(manager)
            assert wait_for(lambda: words.extend(heard(manager)) or b"WATCHDOG=1" in words)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        words += heard(manager)
    assert words.index(b"RELOADING=1") < words.index(b"READY=1") < words.index(b"STOPPING=1")
    journal = station.journal()
    assert check(station, journal, running=False).faults == ()
    ((reason,),) = journal.read("SELECT DISTINCT reason FROM instances WHERE state = 'no-result'")
    assert "retention had removed files" in reason
    assert journal.read("SELECT COUNT(*) FROM reports WHERE current = 1") == [(1,)]
    journal.close()
    assert kinds(repository.messages)[:4] == ["110100", "110104", "110102", "110104"]
    lines = [json.loads(line) for line in (tmp_path / "serve.log").read_text().splitlines()]
    assert {"started", "study_done", "reloaded", "removed", "stopped"} <= {line["event"] for line in lines}
    assert {"supervisor", "intake-1", "work", "upkeep"} <= {line["process"] for line in lines}
    told = (tmp_path / "serve.log").read_text() + (tmp_path / "state" / "audit.jsonl").read_text()
    for secret in (header.PatientID, str(header.PatientName), header.StudyInstanceUID, header.SOPInstanceUID):
        assert secret not in told
    assert any(str(header.PatientID).encode() in message for message in repository.messages)


def test_the_metrics_are_at_the_web_door(tmp_path, dense):
    box = Box(tmp_path, dense, 1, more="[web]\nenabled = true\nport = 0\n")
    with box.running():
        status = json.loads((tmp_path / "state" / "daemon.json").read_text())
        root = f"http://127.0.0.1:{status['ports']['web']}"

        def answered(path: str) -> bool:
            try:
                with urllib.request.urlopen(root + path, timeout=5) as answer:
                    return answer.status == 200
            except OSError:
                return False

        assert wait_for(lambda: answered("/healthz")) and wait_for(lambda: answered("/readyz"))
        with urllib.request.urlopen(f"{root}/metrics", timeout=5) as answer:
            assert b"hscc_edge_up 1.0" in answer.read()


def test_a_disk_that_fails_at_the_first_heartbeat_leaves_no_process_behind(tmp_path, dense, monkeypatch):
    def failing(path, *content, **options):
        raise StorageError("the disk fails")

    daemon = Daemon(Box(tmp_path, dense, 1).config)
    monkeypatch.setattr(durable, "write_json", failing)
    with pytest.raises(StorageError, match="the disk fails"):
        daemon.run(until_idle_s=0.5)
    assert not [process for process in multiprocessing.active_children() if process.name == "work"]
    assert "stopped" in (tmp_path / "state" / "audit.jsonl").read_text()
