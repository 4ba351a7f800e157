"""A station whose journal holds a bit of everything, written by the daemon's own functions from objects with planted
identifiers; and the HTTP door's whole `run` on it."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from argon2 import PasswordHasher
from outgoing import MR, decided, report_next

from hscc_edge.serve import outbox, studies
from hscc_edge.serve.config import Config, Destination, ServedModel, Web
from hscc_edge.serve.instances import CONFLICT, NO_RESULT, REPORTED, Receipt, of_study, receive
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.station import Station, open_state
from hscc_edge.serve.web import accounts
from hscc_edge.serve.web import server as web

ROOT_UID = "1.2.826.0.1.3680043.9.7777"
PASSWORD = "correct horse battery"
# What `outgoing.headers` writes into the reports, and the UIDs here: on no page, in no address.
SENTINELS = ("Doe", "Jane", "P-77", 'A-1"', "19700102", "Who^Doctor", ROOT_UID, "1.2.3.")


def uid(number: int) -> str:
    """The Study Instance UID of the study of that number."""
    return f"{ROOT_UID}.{number}"


def station(root: Path, **changes: Any) -> Station:
    """A station with an archive and a registry, and the dashboard on loopback."""
    web_table = changes.pop("web", Web(enabled=True, port=0))
    destinations = (Destination(name="archive", commitment=True), Destination(name="registry"))
    model = ServedModel(root, "brain")
    config = Config(root / "state", (model,), destinations, web=web_table, reserve_mib=1, **changes)
    found = Station(config, open_state(config.state))
    found.journal().close()
    return found


def add_study(found: Station, journal: Journal, number: int, count: int = 2, **changes: Any) -> list[int]:
    """Receive a study's instances; returns the rows' numbers."""
    study, key, first = uid(number), found.who(uid(number)), 1_790_000_000.0 + number
    digests = [f"{number:032d}{item:032d}" for item in range(count)]
    receipts = [
        Receipt(f"{study}.1.{item}", MR, digest, f"{study}.1", study, digest, 5000, "dimse", key, first, **changes)
        for item, digest in enumerate(digests)
    ]
    receive(journal, receipts)
    return [row.id for row in of_study(journal, study)]


def finish(found: Station, journal: Journal, number: int, label: str | None = "glioma", reason: str = "") -> None:
    """Work on a study as the worker does."""
    study = uid(number)
    studies.claim(journal, [study])
    case = decided(study, label, len(of_study(journal, study)), reason or None)
    report = report_next(found.config, journal, study, [case])
    state = REPORTED if label else NO_RESULT
    outcomes = [(row.id, state, reason or None) for row in of_study(journal, study)]
    studies.finish(journal, study, outcomes, [report] if report is not None else [])


def deliver(journal: Journal, destination: str, how: str) -> None:
    """Answer what is due to a destination: delivered, committed, refused, dead."""
    for item in outbox.due(journal, destination):
        if how == "dead":
            outbox.bury(journal, item, "status 0xa900")
        elif how == "refused":
            outbox.postpone(journal, item, 3600.0, "no association")
        else:
            outbox.stored(journal, item)
            if how == "committed":
                outbox.delivered(journal, item, "committed")


def fill(found: Station) -> None:
    """Six studies: delivered and superseded, stored, dead, no result, in conflict, and one still open."""
    journal = found.journal()
    add_study(found, journal, 1)
    finish(found, journal, 1)
    deliver(journal, "archive", "committed")
    deliver(journal, "registry", "committed")
    add_study(found, journal, 1, count=3)
    finish(found, journal, 1)
    deliver(journal, "archive", "committed")
    deliver(journal, "registry", "dead")
    add_study(found, journal, 2)
    finish(found, journal, 2)
    deliver(journal, "archive", "stored")
    add_study(found, journal, 3)
    finish(found, journal, 3)
    deliver(journal, "archive", "refused")
    add_study(found, journal, 4)
    finish(found, journal, 4, None, "out of scope: modality")
    add_study(found, journal, 5, count=1)
    (old,), key = of_study(journal, uid(5)), found.who(uid(5))
    other = Receipt(old.sop, MR, "f" * 64, old.series, uid(5), "5-x", 10, "stow", key, 1_790_000_005.0)
    receive(journal, [other])
    finish(found, journal, 5)
    add_study(found, journal, 6, priority=2, expected=9)
    assert journal.read("SELECT COUNT(*) FROM instances WHERE state = ?", (CONFLICT,)) == [(1,)]
    journal.close()


def add_accounts(found: Station) -> None:
    """An operator and a viewer with the same password, hashed as cheaply as argon2 can."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounts, "_hasher", lambda: PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        for name, role in (("olga", "operator"), ("viktor", "viewer")):
            accounts.add_account(accounts.accounts_file(found.config.state), name, role, PASSWORD)


def copied(found: Station, root: Path, **web_table: Any) -> Station:
    """Another station with what the first one holds."""
    shutil.copytree(found.config.state, root / "state")
    config = replace(found.config, state=root / "state", web=replace(found.config.web, **web_table))
    return replace(found, config=config)


@contextmanager
def served(found: Station) -> Iterator[int]:
    """The real process's whole `run` in a thread; yields its port."""
    door, stop = socket.create_server(("127.0.0.1", 0)), threading.Event()
    beats: list[int] = []
    running = replace(found, sockets={"web": door}, stop=stop, beat=lambda: beats.append(1))
    thread = threading.Thread(target=web.run, args=(running,))
    thread.start()
    try:
        yield door.getsockname()[1]
    finally:
        stop.set()
        thread.join(20)
        door.close()
    assert beats and not thread.is_alive()


@contextmanager
def client(found: Station, **options: Any) -> Iterator[httpx.Client]:
    """A browser's place: it keeps cookies and follows nothing by itself."""
    scheme = "https" if found.config.web.tls else "http"
    with served(found) as port, httpx.Client(base_url=f"{scheme}://127.0.0.1:{port}", timeout=30, **options) as asking:
        yield asking
