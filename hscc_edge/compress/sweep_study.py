"""A sweep's trials on disk: which are wanted, who works on which, what came of them.

Optuna's journal holds them: every change is one line that is appended, fsynced and guarded by a lock file, and a
reader replays the lines, so that a killed process can at most leave its last line torn. Optuna's own manual advises
against SQLite for several processes ("database is locked"), and against it on network file systems.
"""

from __future__ import annotations

import fcntl
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.compress.sweep_recipe import Point, Range, Search, SweepRecipe, point_of
from hscc_edge.errors import ConfigError, extra

with extra("workstation"):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState

GRID, SEARCH = "grid", "search"
JOURNAL, LOCK, WORKERS = "study.journal", "sweep.lock", "workers"
OPEN = (TrialState.WAITING, TrialState.RUNNING)


@dataclass(frozen=True, slots=True)
class Studies:
    """The two studies of a sweep: every method, budget and seed; and the hyper-parameters that a sampler draws."""

    out: Path
    recipe: SweepRecipe
    storage: JournalStorage
    grid: optuna.Study
    search: optuna.Study

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials of both, in order; all states if none is given."""
        wanted = states or None
        return [trial for study in (self.grid, self.search) for trial in study.get_trials(states=wanted)]

    def finished(self) -> int:
        """Trials that are complete or refused."""
        done = self.trials(TrialState.COMPLETE, TrialState.FAIL)
        return sum(trial.state == TrialState.COMPLETE or "refused" in trial.user_attrs for trial in done)

    def left(self) -> int:
        """Trials that wait or run."""
        return len(self.trials(*OPEN))


def open_studies(out: Path, recipe: SweepRecipe, facts: Mapping[str, str]) -> Studies:
    """Open or begin a sweep, and queue what is wanted and not there; trials of dead workers are queued anew.

    Args:
        facts: digests of what must not change between two runs.

    Raises:
        ConfigError: if the directory holds a sweep of another recipe, bundle or cohort.
        StorageError: if it cannot be written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with durable.storage(out):
        (out / WORKERS).mkdir(parents=True, exist_ok=True)
        with locked(out / LOCK):
            studies = _load(out, recipe)
            _check(studies, {"recipe": recipe.key, **facts})
            for study, wanted in ((studies.grid, _grid(recipe)), (studies.search, _searched(recipe.search, recipe))):
                drawn = _revive(studies, study)
                _queue(study, wanted, drawn)
            for path in (out / WORKERS).iterdir():
                _alive(path)
    return studies


def _load(out: Path, recipe: SweepRecipe) -> Studies:
    path = str(out / JOURNAL)
    lock = JournalLock(path)
    _mend(Path(path), lock)
    storage = JournalStorage(JournalFileBackend(path, lock_obj=lock))  # type: ignore[arg-type]
    grid, search = (
        optuna.create_study(
            storage=storage, study_name=name, directions=["minimize"] * len(recipe.objectives), load_if_exists=True
        )
        for name in (GRID, SEARCH)
    )
    return Studies(out, recipe, storage, grid, search)


def _mend(path: Path, lock: JournalLock) -> None:
    """Drop a last line that a power loss or a kill has torn: no later line could be read."""
    if not path.exists():
        return
    lock.acquire()
    try:
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            os.truncate(path, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _check(studies: Studies, facts: Mapping[str, str]) -> None:
    held = studies.grid.user_attrs
    for name, value in facts.items():
        if held.get(name, value) != value:
            raise ConfigError(
                f"{studies.out} holds a sweep of another {name}: give a new --out, or the {name} it was begun with "
                "(of the recipe only search.trials may change)"
            )
        if name not in held:
            studies.grid.set_user_attr(name, value)


def _grid(recipe: SweepRecipe) -> dict[str, dict[str, Any]]:
    """In the order in which what a method finds out can be used again."""
    return {
        f"{method} {budget} seed {seed}": {"method": method, "budget": budget, "seed": seed}
        for method, seed, budget in product(recipe.methods, recipe.seeds, recipe.budgets)
    }


def _searched(search: Search | None, recipe: SweepRecipe) -> dict[str, dict[str, Any]]:
    pairs = [(seed, budget) for seed, budget in product(recipe.seeds, recipe.budgets)]
    count = 0 if search is None else search.trials
    return {
        f"search {number}": {"seed": pairs[number % len(pairs)][0], "budget": pairs[number % len(pairs)][1]}
        for number in range(count)
    }


def _revive(studies: Studies, study: optuna.Study) -> dict[str, dict[str, Any]]:
    """Mark the trials of dead workers as failed; what had been drawn for them, by name."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if not _alive(studies.out / WORKERS / str(trial.user_attrs.get("worker"))):
            study.tell(trial.number, state=TrialState.FAIL)
    failed = study.get_trials(states=(TrialState.FAIL,))
    return {trial.user_attrs["wanted"]: trial.params for trial in failed}


def _queue(study: optuna.Study, wanted: Mapping[str, dict[str, Any]], drawn: Mapping[str, dict[str, Any]]) -> None:
    there = {
        trial.user_attrs["wanted"]
        for trial in study.get_trials()
        if trial.state != TrialState.FAIL or "refused" in trial.user_attrs
    }
    for name, params in wanted.items():
        if name not in there:
            family = f"{params.get('method', SEARCH)} {params['seed']}"
            study.enqueue_trial({**drawn.get(name, {}), **params}, user_attrs={"wanted": name, "family": family})


class JournalLock:
    """What optuna takes while it writes a line. Its own outlives a process that was killed, by half a minute."""

    def __init__(self, journal: str) -> None:
        self.path, self.held = Path(f"{journal}.lock"), ExitStack()

    def acquire(self) -> bool:
        """Wait for the lock."""
        with ExitStack() as stack:
            stack.enter_context(locked(self.path))
            self.held = stack.pop_all()
        return True

    def release(self) -> None:
        """Let others have it."""
        self.held.pop_all().close()


@contextmanager
def locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[int]:
    """Hold a lock that the kernel frees when the process dies, however it dies."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, kind)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def worker_name(out: Path) -> Iterator[str]:
    """A name for this worker; while its file is locked, its trials are its own."""
    name = uuid.uuid4().hex
    with ExitStack() as stack:
        with locked(out / LOCK):
            stack.enter_context(locked(out / WORKERS / name))
        yield name
        (out / WORKERS / name).unlink(missing_ok=True)


def _alive(path: Path) -> bool:
    """Whether a worker holds its file; that of a dead one is removed. To be called under the sweep's lock."""
    if not path.is_file():
        return False
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    path.unlink(missing_ok=True)
    return False


def claim(studies: Studies, worker: str, family: str) -> tuple[optuna.Study, Trial] | None:
    """Take the next trial, the grid's first; None if none waits.

    Trials that can use what the worker holds (`family`) come first, then families on which nobody works.
    """
    with locked(studies.out / LOCK):
        for study in (studies.grid, studies.search):
            waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not waiting:
                continue
            busy = {item.user_attrs["family"] for item in study.get_trials(states=(TrialState.RUNNING,))}
            chosen = min(waiting, key=lambda item: (*_distance(item.user_attrs["family"], family, busy), item.number))
            number = studies.storage.get_trial_id_from_study_id_trial_number(
                studies.storage.get_study_id_from_name(study.study_name), chosen.number
            )
            studies.storage.set_trial_user_attr(number, "worker", worker)
            studies.storage.set_trial_state_values(number, TrialState.RUNNING)
            study.sampler = _sampler(studies.recipe.search, chosen.number)
            return study, Trial(study, number)
    return None


def _distance(own: str, family: str, busy: set[str]) -> tuple[bool, bool]:
    return own != family, own in busy and not own.startswith(SEARCH)


def _sampler(search: Search | None, number: int) -> optuna.samplers.BaseSampler:
    """Seeded by the trial's number, so that one worker draws the same after an interruption."""
    seed = 0 if search is None else search.seed * 1_000_003 + number
    if search is not None and search.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(population_size=min(50, max(4, search.trials // 5)), seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def draw(studies: Studies, trial: Trial) -> Point:
    """The point of a trial: of the grid as queued, of the search as the sampler says."""
    recipe, search = studies.recipe, studies.recipe.search
    budget = str(trial.suggest_categorical("budget", recipe.budgets))
    seed = trial.suggest_categorical("seed", recipe.seeds)
    if search is None or trial.study.study_name == GRID:
        method = str(trial.suggest_categorical("method", recipe.methods))
        return point_of(method, budget, seed, recipe.settings)
    drawn = {name: _suggest(trial, name, values) for name, values in search.space.items()}
    return point_of(search.method, budget, seed, {**recipe.settings, **drawn})


def _suggest(trial: Trial, name: str, values: tuple[Any, ...] | Range) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(name, values)
    if isinstance(values.low, int) and isinstance(values.high, int) and name != "damping":
        return trial.suggest_int(name, values.low, values.high, log=values.log)
    return trial.suggest_float(name, values.low, values.high, log=values.log)


def twin_of(study: optuna.Study, trial: Trial) -> FrozenTrial | None:
    """A complete trial of the same study with the same parameters."""
    found = study.get_trials(states=(TrialState.COMPLETE,))
    return next((item for item in found if item.params == trial.params), None)


def refuse(study: optuna.Study, trial: Trial, reason: str) -> None:
    """Record that the method cannot do this; it is not tried again."""
    trial.set_user_attr("refused", reason)
    study.tell(trial, state=TrialState.FAIL)


def record(study: optuna.Study, trial: Trial, outcome: Mapping[str, Any], objectives: tuple[str, ...]) -> None:
    """Record what was measured."""
    values = [float(outcome[name]) for name in objectives]
    if not all(math.isfinite(value) for value in values):
        refuse(study, trial, f"the outcome is not finite: {dict(zip(objectives, values, strict=True))}")
        return
    trial.set_user_attr("outcome", dict(outcome))
    study.tell(trial, values)
