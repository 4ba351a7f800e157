"""What is looked after from time to time: retention, certificates, drift."""

from __future__ import annotations

from hscc_edge.serve.station import Station


def run(station: Station) -> None:
    """The process; ends when the station is to stop."""
    while not station.rest(1.0):
        pass
