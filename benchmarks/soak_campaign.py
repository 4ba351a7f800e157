"""One state directory's life: its daemon is started, sent to, hurt, started again; then it finishes and is checked."""

from __future__ import annotations

import json
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from soak_archive import MOODS, WELL, Archive
from soak_check import figures, gather, kept, problems
from soak_daemon import Refused, Running, Station
from soak_faults import Disk
from soak_load import Item, Load, join

SETTLE_S = 120.0
MOODY = 0.2  # share of the points at which the archive is in a bad mood besides


@dataclass(frozen=True, slots=True)
class Point:
    """One fault: a key of `soak_points.DO`, what it is about, and the seed of all that it chooses."""

    kind: str
    detail: str
    seed: int

    @property
    def name(self) -> str:
        """What it is counted as."""
        return f"{self.kind}:{self.detail.partition(':')[0]}" if self.detail else self.kind


@dataclass(frozen=True, slots=True)
class Made:
    """What is served and sent: a bundle for single MR images, another of the same kind to switch to, an image."""

    bundle: Path
    other: Path | None
    image: Path


@dataclass(slots=True)
class Tally:
    """What a campaign did; `unreached` are crash points that the daemon did not pass, so that it was killed at rest."""

    kinds: Counter[str] = field(default_factory=Counter)
    unreached: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    refused_starts: int = 0
    cuts: int = 0
    faults: int = 0


class Broken(Exception):
    """The contract is broken; the message tells how."""


class Campaign:
    """Runs points on one state directory. Everything that it chooses comes from the points' seeds."""

    def __init__(self, root: Path, made: Made, library: Path, seed: int, more: str = "") -> None:
        self.root, self.seed, self.tally, self.made = root, seed, Tally(), made
        root.mkdir(parents=True, exist_ok=True)
        self.archive = Archive(root / "archive")
        self.disk = Disk(root / "faults", root / "state", library)
        self.station = Station(root, made.bundle, self.archive.port, more, self.disk.environment)
        self.load = Load(root / "sent", made.image, seed)
        self.killed: Counter[str] = Counter()  # processes of the life that runs
        self.daemon: Running | None = None
        self._seen = 0

    def close(self) -> None:
        """Kill what runs, end the archive."""
        self.stop()
        self.station.close()
        self.archive.close()

    def run(self, points: Sequence[Point], do: Mapping[str, Callable[[Campaign, Point, random.Random], None]]) -> None:
        """All points, one after the other.

        Raises:
            Broken: if something acknowledged is missing.
        """
        for point in points:
            choice = random.Random(point.seed)
            self.archive.mood = choice.choice(MOODS) if choice.random() < MOODY else WELL
            with (self.root / "points.jsonl").open("a") as file:
                file.write(json.dumps([point.kind, point.detail, point.seed]) + "\n")
            do[point.kind](self, point, choice)
            self.tally.kinds[point.name] += 1
            self.archive.mood = WELL

    def start(self, crash: str = "") -> Running:
        """A running daemon, started anew if none runs or a crash is asked for; then what it has kept is looked at."""
        if self.daemon is not None and (crash or not self.daemon.is_alive()):
            self.stop()
        if self.daemon is None:
            self.daemon = self.station.start(crash)
            self.archive.daemon_port = self.daemon.port
            self.tally.starts += 1
            self.look()
        return self.daemon

    def stop(self) -> None:
        """kill -9 of everything."""
        if self.daemon is not None:
            self.daemon.kill()
        self.daemon = None
        self.killed.clear()

    def look(self) -> None:
        """Everything acknowledged since the last look is in the journal and in the spool."""
        items = self.items
        if wrong := kept(self.station.state, items[self._seen :]):
            raise Broken("\n".join(wrong))
        self._seen = len(items)

    @property
    def items(self) -> list[Item]:
        """What was acknowledged."""
        return [item for item, _ in self.load.acknowledged.values()]

    def send(self, studies: int = 4) -> list[threading.Thread]:
        """Let modalities send to the running daemon."""
        assert self.daemon is not None
        return self.load.send(self.daemon.port, self.load.batch(studies))

    def settled(self) -> bool:
        """Whether nothing is left to be worked on or sent."""
        with closing(sqlite3.connect(self.station.state / "journal.sqlite", timeout=30)) as db:
            (waiting,) = db.execute("SELECT COUNT(*) FROM instances WHERE state = 'received'").fetchone()
            (unsent,) = db.execute("SELECT COUNT(*) FROM deliveries WHERE state IN ('pending', 'stored')").fetchone()
        return not waiting and not unsent

    def finish(self) -> dict[str, Any]:
        """Start once more, send what was not acknowledged, let the daemon finish, check; figures and `problems`."""
        self.disk.heal()
        self.stop()
        for _ in range(20):
            join(self.load.send(self.start().port, self.load.unacknowledged))
            if not self.load.unacknowledged:
                break
            time.sleep(0.5)
        done = wait(self.settled, SETTLE_S)
        self.load.save(self.root / "acknowledged.jsonl")
        found = gather(self.station.state, self.items, self.root / "archive")
        wrong = [*problems(found)]
        if not done:
            wrong.append(f"settled: work was left after {SETTLE_S:.0f} s")
        wrong += [f"unacknowledged: {item.sop}" for item in self.load.unacknowledged]
        try:
            self.station.run(["state", "check", str(self.station.config)])
        except Refused as error:
            wrong += [f"state_check: {line}" for line in str(error).splitlines()]
        return {**figures(found, wrong), "problems": wrong}


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes true within that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
