"""A real OpenSSH server on loopback, and behind it a device that is this machine without a GPU: fixtures."""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SERVER = """
Port {port}
ListenAddress 127.0.0.1
HostKey {root}/host_key
AuthorizedKeysFile {root}/authorized_keys
PidFile {root}/sshd.pid
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PermitUserRC no
SetEnv PATH={root}/shadow:{tools}:/usr/bin:/bin TMPDIR={root}/there XDG_CACHE_HOME={root}/cache
"""
CLIENT = """
Host jetson
  HostName 127.0.0.1
  Port {port}
Host *
  User {user}
  IdentityFile {root}/user_key
  IdentitiesOnly yes
  HostKeyAlias jetson
  UserKnownHostsFile {root}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


@dataclass(frozen=True, slots=True)
class Station:
    """A running sshd; `there` is where the visitor's directories are made, `shadow` comes first in its PATH."""

    root: Path
    port: int

    @property
    def there(self) -> Path:
        return self.root / "there"

    @property
    def shadow(self) -> Path:
        return self.root / "shadow"

    def put(self, name: str, text: str) -> Path:
        """A program of the device, found before any other."""
        path = self.shadow / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path


def key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Station]:
    root = tmp_path_factory.mktemp("station")
    for name in ("there", "shadow", "bin"):
        (root / name).mkdir()
    (root / "known_hosts").write_text("jetson " + key(root / "host_key"))
    (root / "authorized_keys").write_text(key(root / "user_key"))
    port = free_port()
    places = {"root": root, "port": port, "user": getpass.getuser(), "tools": Path(sys.executable).parent}
    (root / "sshd_config").write_text(SERVER.format(**places))
    (root / "ssh_config").write_text(CLIENT.format(**places))
    (root / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {root}/ssh_config "$@"\n')
    (root / "bin" / "ssh").chmod(0o755)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd of root separates its privileges there
    sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
    with subprocess.Popen([str(sshd), "-D", "-f", root / "sshd_config", "-E", root / "log"]) as server:
        wait_for(port, server, root / "log")
        yield Station(root, port)
        server.terminate()


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if server.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"sshd did not come up: {log.read_text() if log.exists() else 'no log'}")


@pytest.fixture
def station(running, monkeypatch) -> Iterator[Station]:
    """The device, with a user whose ssh configuration names it "jetson"; nothing may be left there."""
    monkeypatch.setenv("PATH", f"{running.root / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    yield running
    for path in running.shadow.iterdir():
        path.unlink()
    left = list(running.there.iterdir())
    for path in left:
        shutil.rmtree(path)
    assert not left, f"left on the device: {left}"
