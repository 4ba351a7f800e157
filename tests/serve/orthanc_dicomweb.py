"""Orthanc with its DICOMweb plugin, as a sender by STOW-RS."""

import json
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from box import wait_for

PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


@contextmanager
def orthanc(root: Path, servers: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Runs on loopback while the body does; yields its URL. `servers` are those it may send to: name -> [URL]."""
    root.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
    settings = {
        "StorageDirectory": str(root / "storage"), "IndexDirectory": str(root / "index"), "HttpPort": port,
        "DicomServerEnabled": False, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "Plugins": [PLUGIN], "DicomWeb": {"Enable": True, "Servers": servers},
    }  # fmt: skip
    (root / "orthanc.json").write_text(json.dumps(settings))
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(["/usr/sbin/Orthanc", str(root / "orthanc.json")], stdout=log, stderr=log)
    try:
        if not wait_for(lambda: _answers(port)):
            raise RuntimeError((root / "log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/system", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
