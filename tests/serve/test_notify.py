"""What systemd is told (sd_notify(3)), over a socket of each kind that it gives."""

import os
import re
import socket

import pytest

from hscc_edge.serve.notify import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_words_come_to_the_manager(tmp_path, monkeypatch, abstract):
    name = f"@hscc-edge-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert notify("READY=1") and manager.recv(100) == b"READY=1"
        assert notify("RELOADING=1") and re.fullmatch(rb"RELOADING=1\nMONOTONIC_USEC=\d+", manager.recv(100))


def test_without_a_manager_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert not notify("READY=1")
