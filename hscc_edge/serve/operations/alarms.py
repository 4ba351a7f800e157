"""What somebody should look at now, from the journal, the daemon's heartbeat, the disk and the configuration."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hscc_edge.serve.config import Config, Listener, Web
from hscc_edge.serve.config_rules import is_loopback
from hscc_edge.serve.instances import RECEIVED
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.operations.certificates import certificates
from hscc_edge.serve.operations.health import STALE_S
from hscc_edge.serve.outbox import DEAD
from hscc_edge.serve.tallies import by_state
from hscc_edge.serve.web import views
from hscc_edge.serve.web.words import span

BAD, WARN, NOTE = "bad", "warn", "note"
SILENT_S = 30.0
PATIENCE_S = 60.0
ORDER = {BAD: 0, WARN: 1, NOTE: 2}


@dataclass(frozen=True, slots=True)
class Alarm:
    """One sentence of what is wrong, what to do about it, and the page that shows more."""

    level: str
    title: str
    advice: str
    link: str = ""


def read_status(state: Path) -> dict[str, Any]:
    """What the supervisor last wrote of itself (`daemon.json`); empty if there is nothing to read."""
    try:
        found = json.loads((state / "daemon.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def alarms(config: Config, journal: Journal, status: Mapping[str, Any]) -> list[Alarm]:
    """What stands now, the worst first."""
    found = [
        *_doors(config), *_processes(status), *_disk(config), *_queue(config, journal), *_destinations(journal),
        *_certificates(config), *_models(journal), *_audit(journal),
    ]  # fmt: skip
    return sorted(found, key=lambda alarm: ORDER[alarm.level])


def _doors(config: Config) -> Iterator[Alarm]:
    doors: list[tuple[str, Listener | Web]] = [("DICOM", config.dicom)]
    doors += [("HTTP", config.web)] if config.web.enabled else []
    for name, door in doors:
        if door.insecure and door.tls is None and not is_loopback(door.host):
            yield Alarm(
                BAD,
                f"The {name} door is open without TLS (insecure = true)",
                "Whoever reaches this network can read and send. Set up TLS, or keep the network to the modality and "
                "the archive.",
                "/box",
            )


def _processes(status: Mapping[str, Any]) -> Iterator[Alarm]:
    age_s = time.time() - float(status.get("time", 0.0))
    if age_s > STALE_S:
        yield Alarm(BAD, "The daemon's heartbeat has stopped", "See its log; restart the service.", "/box")
        return
    for name, facts in status.get("processes", {}).items():
        if facts["pid"] is None:
            yield Alarm(BAD, f"The process {name} is down", "It is started again by itself; see the log why.", "/box")
        elif facts["silent_s"] + age_s > SILENT_S:
            yield Alarm(
                WARN,
                f"The process {name} has been silent for {facts['silent_s'] + age_s:.0f} s",
                "It is killed and replaced if it stays so; nothing is lost by that.",
                "/box",
            )


def _disk(config: Config) -> Iterator[Alarm]:
    free_mib = shutil.disk_usage(config.state).free >> 20
    if free_mib < config.reserve_mib:
        yield Alarm(
            BAD,
            f"The disk is full: {free_mib} MiB are free, {config.reserve_mib} MiB are the reserve",
            "Instances are refused with 0xA700 until there is room; senders keep them.",
            "/box",
        )
    elif free_mib < 2 * config.reserve_mib:
        yield Alarm(
            WARN,
            f"The disk is nearly full: {free_mib} MiB are free, below {config.reserve_mib} MiB instances are refused",
            "Make room, or let retention remove ended files earlier.",
            "/box",
        )


def _queue(config: Config, journal: Journal) -> Iterator[Alarm]:
    dead = by_state(journal, "deliveries").get(DEAD, 0)
    if dead:
        yield Alarm(
            BAD,
            f"{dead} dead {'letter' if dead == 1 else 'letters'}: results that did not arrive",
            "Mend what refused them, then send them again.",
            "/outbox",
        )
    waiting = by_state(journal, "instances").get(RECEIVED, 0)
    if waiting >= 0.8 * min(config.max_waiting, views.MANY):
        yield Alarm(
            WARN,
            f"{waiting} instances wait for work",
            f"At {config.max_waiting} more are refused with 0xA700.",
            "/studies?state=open",
        )


def _destinations(journal: Journal) -> Iterator[Alarm]:
    rows = journal.read(
        "SELECT destination, COUNT(*), COUNT(reason), MIN(created), MAX(reason) FROM (SELECT d.destination, d.reason, "
        "r.created FROM deliveries AS d JOIN reports AS r ON r.id = d.report WHERE d.state IN ('pending', 'stored') "
        "LIMIT ?) GROUP BY 1",
        (views.MANY,),
    )
    for name, waiting, refused, oldest, reason in rows:
        if refused and time.time() - oldest > PATIENCE_S:
            yield Alarm(
                WARN,
                f"{name} does not take results: {waiting} wait, the oldest for {span(time.time() - oldest)} ({reason})",
                "They are sent by themselves as soon as it answers.",
                "/outbox",
            )


def _certificates(config: Config) -> Iterator[Alarm]:
    for item in certificates(config):
        if item.level == "good":
            continue
        days = item.days
        if days is None:
            said = f"The certificate for {item.used_for} {item.fault}"
        elif days < 0:
            said = f"The certificate for {item.used_for} ended {-days:.0f} days ago"
        else:
            said = f"The certificate for {item.used_for} ends in {days:.0f} days"
        yield Alarm(item.level, said, "Put a new one in its place and reload the daemon (SIGHUP).", "/box")


def _models(journal: Journal) -> Iterator[Alarm]:
    for name, value in journal.read(
        "SELECT name, value FROM facts WHERE name >= 'drift:' AND name < 'drift;' LIMIT 100"
    ):
        found = json.loads(value)
        yield Alarm(
            WARN,
            f"Studies of the model {name.partition(':')[2]} are unlike {found['reference']}: "
            f"{', '.join(found['features'])}",
            "Look at the charts: a scanner, a protocol or the patients have changed.",
            "/charts",
        )


def _audit(journal: Journal) -> Iterator[Alarm]:
    broken = journal.fact("audit_broken")
    if broken is not None:
        yield Alarm(
            BAD, f"The audit file was changed: {broken}", "Keep it as it is and find out who did; see audit verify.",
            "/audit",
        )  # fmt: skip
