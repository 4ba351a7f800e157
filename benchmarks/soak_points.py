"""What may happen to the daemon: one function a kind of fault."""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import soak_power
from soak_archive import WELL
from soak_campaign import Broken, Campaign, Point, wait
from soak_check import kept, sound
from soak_daemon import Refused
from soak_faults import ALL, OPERATIONS, Entry
from soak_load import MINIMUM, ask_commitment, join

ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
SINGLE = ("intake-1", "intake-2", "work", "delivery", "upkeep", "supervisor")
# A kill at the COUNTth passage of a point is to be reached before the load of one point is over.
MOST = {
    "study-": 3, "report-": 2, "delivery-": 3, "commitment-r": 1, "commitment-": 2, "model-": 1, "removal-": 1,
    "files-": 1,
}  # fmt: skip
OFTEN = ("create", "write", "sync", "rename")
UNREACHED_S, HUNG_S = 15.0, 60.0
CUTS = 12


def crash(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """kill -9 of everything by the daemon's own hand, at a named step."""
    daemon = campaign.start(point.detail)
    senders = campaign.send()
    deadline = time.monotonic() + UNREACHED_S
    while not (dead := daemon.wait_for_death(0.2)) and time.monotonic() < deadline:
        if not any(sender.is_alive() for sender in senders) and campaign.settled():
            break
    if not dead:
        campaign.tally.unreached[point.detail.partition(":")[0]] += 1
    campaign.stop()
    join(senders)


def promise(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """kill -9 at a named step while a sender asks for commitment to what was acknowledged; asked again, it is given."""
    daemon = campaign.start(point.detail)
    join(campaign.load.send(daemon.port, campaign.load.small(), senders=1))
    asked = campaign.items[-MINIMUM:]
    if ask_commitment(daemon.port, asked):
        campaign.tally.unreached[point.detail.partition(":")[0]] += 1
    campaign.stop()
    if len(campaign.items) >= MINIMUM and not ask_commitment(campaign.start().port, asked):
        raise Broken("promise: what is kept for ever is not committed to")


def switch(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """kill -9 of the verb that installs or switches a model beside the working daemon; then it is tried again."""
    config, other, daemon = str(campaign.station.config), campaign.made.other, campaign.start()
    install = ["models", "install", config, str(other)]
    if point.detail.startswith("model-installed"):
        words = install
    else:
        campaign.station.run(install)
        active, digest = _models(campaign.station.state)
        words = ["models", "rollback", config] if digest in active else ["models", "activate", config, digest]
    senders = campaign.send(2)
    if campaign.station.run(words, point.detail):
        campaign.tally.unreached[point.detail.partition(":")[0]] += 1
    if words[1] != "rollback":
        campaign.station.run(words)
    join(senders)
    if not daemon.is_alive() or len(_models(campaign.station.state)[0]) != 1:
        raise Broken(f"models: {len(_models(campaign.station.state)[0])} are active after a kill at {point.detail}")
    campaign.look()


def _models(state: Path) -> tuple[list[str], str]:
    """(digests of active models, digest of the one that was installed last)."""
    with closing(sqlite3.connect(state / "journal.sqlite", timeout=30)) as db:
        rows = db.execute("SELECT digest, state FROM models ORDER BY rowid").fetchall()
    return [digest for digest, stage in rows if stage == "active"], rows[-1][0]


def instant(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """kill -9 of everything at some instant."""
    campaign.start()
    senders = campaign.send()
    time.sleep(choice.uniform(0.0, 1.5))
    campaign.stop()
    join(senders)


def single(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """kill -9 of one process or of one of its own; the supervisor replaces it, but for the supervisor itself."""
    daemon = campaign.start()
    if campaign.killed[point.detail]:  # forked anew, so that its pid is not known
        campaign.stop()
        daemon = campaign.start()
    senders = campaign.send(2)
    time.sleep(choice.uniform(0.0, 0.8))
    daemon.kill_one(point.detail, choice)
    campaign.killed[point.detail] += 1
    join(senders)
    if point.detail == "supervisor" and not daemon.wait_for_death(HUNG_S):
        raise Broken("supervisor: its processes outlive it")
    if point.detail != "supervisor":
        campaign.look()


def mood(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """The archive is in a bad mood until that was felt; what was to be sent arrives when it is well again."""
    campaign.start()
    campaign.archive.mood, before = point.detail, campaign.archive.troubles[point.detail]
    join(campaign.send(2))
    wait(lambda: campaign.archive.troubles[point.detail] > before, 5.0)
    campaign.archive.mood = WELL


def disk(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """The disk fails while the daemon works, and is well again; the daemon must go on by itself."""
    daemon = campaign.start()
    senders = campaign.send(2)
    for _ in range(3):
        _arm(campaign, point, choice, 25)
        if campaign.disk.wait_for_hit(1.0):
            time.sleep(choice.uniform(0.0, 0.3))
        campaign.tally.faults += campaign.disk.heal()[1]
    join(senders)
    if not daemon.is_alive():
        raise Broken(f"disk: the daemon ended by {point.detail}")
    campaign.look()


def _arm(campaign: Campaign, point: Point, choice: random.Random, most: int) -> None:
    operations = choice.choice([ALL, ALL, *(OPERATIONS[name] for name in OFTEN)])
    campaign.disk.arm(
        ERRORS[point.detail], call=choice.randint(1, most), operations=operations, lasting=choice.random() < 0.5,
        shorten=choice.random() < 0.3,
    )  # fmt: skip


def sweep_start(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """Each call that changes the disk during a start fails once, or it and all later ones do."""
    for call in range(1, 1000):
        campaign.stop()
        campaign.disk.arm(ERRORS[point.detail], call=call, lasting=call % 2 == 0)
        try:
            campaign.start()
        except Refused:
            campaign.tally.refused_starts += 1
        _, hits = campaign.disk.heal()
        campaign.tally.faults += hits
        if not hits:
            break
        campaign.start()


def sweep_load(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """Each call that changes the disk from a study's first byte to its report's delivery fails once."""
    campaign.archive.mood = WELL
    for call in range(1, 1000):
        daemon = campaign.start()
        campaign.disk.arm(ERRORS[point.detail], call=call, shorten=call % 3 == 0)
        join(campaign.load.send(daemon.port, campaign.load.small(), senders=1))
        done = wait(campaign.settled, HUNG_S)
        _, hits = campaign.disk.heal()
        campaign.tally.faults += hits
        campaign.look()
        if not done or not daemon.is_alive():
            raise Broken(f"disk: the daemon does not go on after {point.detail} at call {call}")
        if not hits:
            break


def full(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """The state's own small volume is filled to its last byte while the daemon works, then emptied."""
    daemon = campaign.start()
    senders = campaign.send(2)
    time.sleep(choice.uniform(0.0, 0.3))
    ballast = campaign.station.state / "ballast"
    written = _fill(ballast)
    time.sleep(choice.uniform(0.2, 0.6))
    join(senders)
    ballast.unlink()
    campaign.tally.faults += written > 0
    if not daemon.is_alive():
        raise Broken("full: the daemon ended")
    join(campaign.send(1))
    campaign.look()


def _fill(path: Path) -> int:
    written = 0
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    written += file.write(bytes(size))
                    os.fsync(file.fileno())
            except OSError:
                continue
    return written


def disk_at_start(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """The disk fails while the daemon starts: it may refuse to, and starts when the disk is well."""
    campaign.stop()
    _arm(campaign, point, choice, 40)
    try:
        campaign.start()
    except Refused:
        campaign.tally.refused_starts += 1
    campaign.tally.faults += campaign.disk.heal()[1]
    if campaign.daemon is not None and campaign.daemon.wait_for_death(2.5):  # it failed when it had told its port
        campaign.tally.refused_starts += 1
    campaign.start()


def power(campaign: Campaign, point: Point, choice: random.Random) -> None:
    """Power loss: the daemon dies at some step or instant, and what was not fsynced is gone, in part or all."""
    campaign.stop()
    state, base = campaign.station.state, campaign.root / "before"
    if state.exists():
        shutil.copytree(state, base, copy_function=_copy)
    else:
        base.mkdir()
    campaign.disk.record(True)
    (crash if point.detail else instant)(campaign, point, choice)
    campaign.disk.record(False)
    volume = soak_power.Volume(base)
    _examine_cuts(campaign, volume, list(campaign.disk.diary()), choice)
    soak_power.cut(volume, state, choice.choice(soak_power.MODES[:3]), choice)
    shutil.rmtree(base)
    campaign.start()


def _copy(old: str, new: str) -> None:
    if "/spool/" in old or "/models/" in old:  # written once
        os.link(old, new)
    else:
        shutil.copyfile(old, new)


def _examine_cuts(
    campaign: Campaign, volume: soak_power.Volume, entries: Sequence[Entry], choice: random.Random
) -> None:
    """Play the diary, and at some moments look at what a cut would leave then, without starting a daemon."""
    left, begin = campaign.root / "cut", 0
    for end in sorted(choice.randrange(len(entries)) for _ in range(CUTS if entries else 0)):
        volume.play(entries[begin:end])
        begin, mode = end, choice.choice(soak_power.MODES[:3])
        soak_power.cut(volume, left, mode, choice)
        told = [item for item, at in campaign.load.acknowledged.values() if at < entries[end].at]
        torn = sound(left / "journal.sqlite") if (left / "journal.sqlite").exists() else ""
        wrong = [f"journal: {torn}"] if torn else kept(left, told) if told else []
        if wrong:
            raise Broken("\n".join([*wrong, f"power cut after {end} of {len(entries)} operations, {mode}"]))
        campaign.tally.cuts += 1
    volume.play(entries[begin:])


def count_of(name: str, choice: random.Random) -> str:
    """NAME:COUNT for a crash point, COUNT at random."""
    most = next((limit for start, limit in MOST.items() if name.startswith(start)), 6)
    return f"{name}:{choice.randint(1, most)}"


DO: dict[str, Callable[[Campaign, Point, random.Random], None]] = {
    "crash": crash, "switch": switch, "promise": promise, "instant": instant, "single": single, "power": power,
    "mood": mood, "disk": disk, "disk-at-start": disk_at_start, "sweep-start": sweep_start, "sweep-load": sweep_load,
    "full": full,
}  # fmt: skip
KILLS = ("crash", "switch", "promise", "instant", "single", "power")
