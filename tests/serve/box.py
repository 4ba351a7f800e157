"""A daemon in a process of its own, with dcmtk as the modality and a receiver as the archive."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = """
state = "state"
reserve_mib = {reserve_mib}
[[model]]
bundle = "{bundle}"
[study]
quiet_s = {quiet_s}
[[route]]
when = {{ Modality = ["MR"] }}
[dicom]
port = 0
processes = {processes}
[[destination]]
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {port}
first_retry_s = 0.2
last_retry_s = 0.5
attempts = {attempts}
{more}
"""


class Box:
    """One daemon's directory; it on it may be started and killed many times."""

    def __init__(self, root: Path, bundle: Path, archive_port: int, **settings: object) -> None:
        values = {"quiet_s": 0.5, "reserve_mib": 1, "attempts": 1000, "processes": 1, "more": "", **settings}
        self.root, self.config = root, root / "serve.toml"
        self.config.write_text(CONFIG.format(bundle=bundle, port=archive_port, **values))
        self.log = root / "daemon.log"

    def start(self) -> tuple[subprocess.Popen[bytes], int]:
        """(process, port); waits until the port is open."""
        status = self.root / "state" / "daemon.json"
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hscc_edge", "serve", str(self.config)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if status.exists():
                found = json.loads(status.read_text())
                if found["pid"] == process.pid:
                    return process, int(found["port"])
            time.sleep(0.02)
        raise RuntimeError(self.log.read_text())

    @contextmanager
    def running(self) -> Iterator[int]:
        """The port of a daemon that is ended politely, or killed if it does not end."""
        process, port = self.start()
        try:
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)

    def states(self) -> dict[str, int]:
        """Instances by state."""
        import sqlite3

        with sqlite3.connect(self.root / "state" / "journal.sqlite") as db:
            return dict(db.execute("SELECT state, COUNT(*) FROM instances GROUP BY state").fetchall())


def storescu(port: int, files: list[Path], *options: str) -> set[Path]:
    """Send files by dcmtk's storescu; those that were acknowledged with 0x0000."""
    done = subprocess.run(
        ["storescu", "-v", "-aec", "HSCC_EDGE", *options, "127.0.0.1", str(port), *map(str, files)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    acknowledged, current = set(), None
    for line in (done.stdout + done.stderr).splitlines():
        if found := re.search(r"Sending file: (.*)$", line):
            current = Path(found[1])
        elif "Received Store Response (Success)" in line and current is not None:
            acknowledged.add(current)
    return acknowledged


def wait_for(condition, seconds: float = 60.0) -> bool:
    """Poll until true or the time is over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
