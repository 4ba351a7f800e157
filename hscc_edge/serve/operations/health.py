"""Whether the daemon lives, and whether it can take in studies now."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hscc_edge.errors import HsccError, StorageError, extra
from hscc_edge.serve import tallies
from hscc_edge.serve.config import Config
from hscc_edge.serve.instances import RECEIVED
from hscc_edge.serve.station import Station

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

HEARTBEAT_S = 5.0
STALE_S = 4 * HEARTBEAT_S
# A process whose restarts are so many within a minute each does nothing useful.
MOST_DEATHS = 4


@dataclass(frozen=True, slots=True)
class Health:
    """What stands against it; nothing if all is well."""

    faults: tuple[str, ...]

    @property
    def well(self) -> bool:
        """Whether nothing stands against it."""
        return not self.faults


def read_status(config: Config) -> dict[str, Any]:
    """The supervisor's last word (`daemon.json`).

    Raises:
        StorageError: if there is none, or it is old.
    """
    path = config.state / "daemon.json"
    try:
        status: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        age_s = time.time() - float(status["time"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path} cannot be read ({type(error).__name__}): start the daemon") from error
    if age_s > STALE_S:
        raise StorageError(f"the daemon has been silent for {age_s:.0f} s: expected a sign every {HEARTBEAT_S:.0f} s")
    return status


def liveness(config: Config) -> Health:
    """Whether the supervisor writes its status and its processes run; a restart would help where it does not."""
    try:
        status = read_status(config)
    except StorageError as error:
        return Health((str(error),))
    return Health(tuple(_processes(status)))


def readiness(station: Station) -> Health:
    """Whether a study that is sent now would be taken in and worked on; costs one small commit."""
    try:
        return Health((*liveness(station.config).faults, *_resources(station)))
    except (HsccError, OSError, sqlite3.Error) as error:
        return Health((f"the journal cannot be written ({type(error).__name__}): see the disk and its rights",))


def routes(station: Station) -> list[Route]:
    """/healthz and /readyz: 200 or 503, and why."""
    with extra("device"):
        from starlette.responses import JSONResponse
        from starlette.routing import Route

    def respond(found: Health) -> Response:
        return JSONResponse({"well": found.well, "faults": list(found.faults)}, 200 if found.well else 503)

    def alive(request: Request) -> Response:
        return respond(liveness(station.config))

    def ready(request: Request) -> Response:
        return respond(readiness(station))

    return [Route("/healthz", alive, methods=["GET"]), Route("/readyz", ready, methods=["GET"])]


def _processes(status: dict[str, Any]) -> Iterator[str]:
    for name, facts in status.get("processes", {}).items():
        if facts.get("pid") is None and facts.get("restarts", 0) >= MOST_DEATHS:
            yield f"the process {name} has died {facts['restarts']} times: see the log"


def _resources(station: Station) -> Iterator[str]:
    config = station.config
    free_mib = shutil.disk_usage(config.state).free >> 20
    if free_mib < config.reserve_mib:
        yield f"{free_mib} MiB are free, the reserve is {config.reserve_mib} MiB: instances are refused"
    journal = station.journal()
    try:
        journal.set_fact("ready_probe", f"{time.time():.0f}")
        waiting = tallies.by_state(journal, "instances").get(RECEIVED, 0)
        if waiting >= config.max_waiting:
            yield f"{waiting} instances wait for work, {config.max_waiting} may: instances are refused"
        (active,) = journal.read("SELECT COUNT(*) FROM models WHERE state = 'active'")[0]
        if active < len(config.model):
            yield f"{active} of {len(config.model)} models are active: see hscc-edge models"
    finally:
        journal.close()
