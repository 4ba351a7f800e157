"""The intake in the test's own process, on a socket of loopback, without a model behind it."""

import socket
from contextlib import contextmanager
from pathlib import Path

from hscc_edge.serve.config import Config, Listener, ServedModel
from hscc_edge.serve.doors.intake import Intake
from hscc_edge.serve.station import Station, open_state


class Doorway:
    """A listening intake; `rows` and `left` look at what it has kept and left behind."""

    def __init__(self, root: Path, door: Listener, **settings: object) -> None:
        self.root = root
        self.config = Config(root / "state", (ServedModel(root),), dicom=door, **{"reserve_mib": 0, **settings})
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listening.getsockname()[1]
        self.station = Station(self.config, open_state(root / "state"), sockets={"dicom": self.listening})
        self.journal = self.station.journal()
        self.intake = Intake(self.station, self.station.journal(), self.station.spool())
        self.intake.start()

    def rows(self, query: str = "SELECT sop, state FROM instances") -> list[tuple[object, ...]]:
        return self.journal.read(query)

    def left(self) -> list[Path]:
        """Files under the directories of drafts."""
        return [path for path in (self.root / "state" / "drafts").rglob("*") if path.is_file()]

    def kept(self) -> list[Path]:
        return list((self.root / "state" / "spool").iterdir())

    def close(self) -> None:
        self.station.stop.set()
        self.intake.stop()
        self.journal.close()
        self.listening.close()


@contextmanager
def doorway(root: Path, door: Listener | None = None, **settings: object):
    found = Doorway(root, door or Listener(), **settings)
    try:
        yield found
    finally:
        found.close()
