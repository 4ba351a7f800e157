"""The HTTP door: dashboard, STOW-RS, metrics and health."""

from __future__ import annotations

from hscc_edge.serve.station import Station


def run(station: Station) -> None:
    """The process; ends when the station is to stop."""
    while not station.rest(1.0):
        pass
