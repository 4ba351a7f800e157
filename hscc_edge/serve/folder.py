"""The watched folder: a third door on the same intake."""

from __future__ import annotations

from collections.abc import Callable

from hscc_edge.serve.config import Folder
from hscc_edge.serve.station import Station


def role(folder: Folder) -> Callable[[Station], None]:
    """What the process for one folder runs."""

    def run(station: Station) -> None:
        while not station.rest(folder.settle_s):
            pass

    return run
