"""Orthanc as the archive: a real PACS that stores, commits, and may be killed and started again."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from hscc_edge.serve.config import Destination

BINARY = "/usr/sbin/Orthanc"
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])


class Orthanc:
    """One PACS with its storage directory."""

    def __init__(self, root: Path) -> None:
        self.root, self.port, self.http_port = root, free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        settings: dict[str, Any] = {
            "Name": "archive", "StorageDirectory": str(root / "storage"), "IndexDirectory": str(root / "storage"),
            "DicomAet": "ARCHIVE", "DicomPort": self.port, "HttpPort": self.http_port, "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False, "HttpDescribeErrors": True, "Plugins": [PLUGIN],
            "DicomModalitiesInDatabase": True, "DicomAssociationCloseDelay": 0,
        }  # fmt: skip
        root.mkdir(parents=True, exist_ok=True)
        (root / "orthanc.json").write_text(json.dumps(settings))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen([BINARY, str(self.root / "orthanc.json")], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if self.get("/system"):
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        raise RuntimeError((self.root / "log").read_text())

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it politely."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None

    def get(self, path: str) -> Any:
        """What its REST interface answers."""
        return httpx.get(self.url + path, trust_env=False, timeout=30).raise_for_status().json()

    def post(self, path: str, content: object) -> Any:
        """What it answers when it is asked to do something."""
        return httpx.post(self.url + path, json=content, trust_env=False, timeout=30).raise_for_status().json()

    def edge(self, port: int, title: str = "HSCC_EDGE") -> None:
        """Tell it where its commitment reports go."""
        content = {"AET": title, "Host": "127.0.0.1", "Port": port}
        httpx.put(f"{self.url}/modalities/edge", json=content, trust_env=False).raise_for_status()

    def sops(self) -> list[str]:
        """The SOP Instance UID of everything that it keeps, sorted."""
        found = self.get("/instances?expand")
        return sorted(item["MainDicomTags"]["SOPInstanceUID"] for item in found)

    def file(self, sop: str) -> bytes:
        """One instance as it keeps it."""
        return httpx.get(f"{self.url}/instances/{self._number(sop)}/file", trust_env=False).content

    def remove(self, sop: str) -> None:
        """Lose an instance."""
        httpx.delete(f"{self.url}/instances/{self._number(sop)}", trust_env=False).raise_for_status()

    def _number(self, sop: str) -> str:
        query = {"Level": "Instance", "Query": {"SOPInstanceUID": sop}}
        (number,) = self.post("/tools/find", query)
        return str(number)

    def destination(self, **changes: Any) -> Destination:
        """It as a destination."""
        settings = {"port": self.port, "first_retry_s": 0.05, "last_retry_s": 0.2, "pause_s": 0.1, "timeout_s": 30.0}
        return Destination(**{**settings, **changes})


@contextmanager
def orthanc(root: Path) -> Iterator[Orthanc]:
    """A running one."""
    found = Orthanc(root)
    found.start()
    try:
        yield found
    finally:
        found.stop()
