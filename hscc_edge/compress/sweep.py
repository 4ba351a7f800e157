"""A sweep: every method, budget and seed, then hyper-parameters that a sampler draws; what is done is never lost.

First the grid in full: methods x budgets x seeds, each with the recipe's settings, since these are compared with each
other. Then the search, for one method, since hyper-parameters are too many for a grid.
"""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.compress.front import Front, front_of, write_front
from hscc_edge.compress.sweep_recipe import SweepRecipe
from hscc_edge.compress.sweep_study import (
    Studies,
    claim,
    draw,
    locked,
    open_studies,
    record,
    refuse,
    twin_of,
    worker_name,
)
from hscc_edge.compress.sweep_trial import Bench, run_trial, splits_of
from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.errors import BudgetError, CohortError, ExportError, HsccError, InputError, ModelError, extra

with extra("workstation"):
    import torch
    from optuna import Study
    from optuna.trial import Trial

STATISTICS, TIMING, POLL_S = "statistics", "timing.lock", 0.5
Done = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What is asked for; a worker process is given the same.

    Attributes:
        out: directory of the study and the front.
    """

    recipe: SweepRecipe
    bundle: Path
    cohort: Path
    out: Path


def run_sweep(sweep: Sweep, workers: int = 1, trials: int | None = None, done: Done | None = None) -> Front:
    """Run what is left of a sweep, and write front.json and front.html; the same call goes on where one was cut off.

    Args:
        workers: processes; each holds one network's statistics in memory.
        trials: at most so many in this call; None for all.
        done: called after trials, with how many and what.

    Raises:
        ConfigError: if `out` holds a sweep of another recipe, bundle or cohort.
        InputError: if a worker ended early; the front holds what was done.
    """
    for name, value in (("--workers", workers), ("--trials", trials)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: expected 1 or more")
    bundle, cohort = read_bundle(sweep.bundle), read_cohort(sweep.cohort)
    judged = _check(bundle, cohort)
    studies = _open(sweep, bundle, cohort)
    ended = _work(sweep, trials, done=done) if workers == 1 else _spawn(sweep, studies, workers, trials, done)
    front = front_of(studies, {"bundle": bundle.spec.name, "bundle_digest": bundle.digest,
                               "cohort_digest": cohort.digest, "judged": judged, "workers": workers})  # fmt: skip
    write_front(sweep.out, front)
    if front.left == 0:
        shutil.rmtree(sweep.out / STATISTICS, ignore_errors=True)
    if ended:
        raise InputError(
            f"{len(ended)} of {workers} workers ended early (exit codes {', '.join(map(str, ended))}) and {front.left} "
            "trials are left: run the same command again, with fewer --workers if memory ran out"
        )
    return front


def _check(bundle: Bundle, cohort: Cohort) -> str:
    """Refuse early what every trial would refuse; the name of the part that judges."""
    if bundle.spec.plan is not None:
        raise ModelError(f"the bundle {bundle.root} is compressed already: give the dense bundle it was made from")
    if cohort.classes != bundle.spec.labels:
        raise CohortError(
            f"the cohort's classes {cohort.classes} are not the bundle's {bundle.spec.labels}: give its own cohort"
        )
    _, judged, name = splits_of(cohort)
    return f"{name}, {len(judged.instances)} images"


def _open(sweep: Sweep, bundle: Bundle, cohort: Cohort) -> Studies:
    return open_studies(sweep.out, sweep.recipe, {"bundle": bundle.digest, "cohort": cohort.digest})


def _work(sweep: Sweep, trials: int | None, done: Done | None = None) -> list[int]:
    """Do trials until none waits."""
    bundle, cohort = read_bundle(sweep.bundle), read_cohort(sweep.cohort)
    studies, (source, judged, _) = _open(sweep, bundle, cohort), splits_of(cohort)
    bench = Bench(bundle, source, judged, "latency" in sweep.recipe.objectives, sweep.recipe.threads,
                  sweep.out / STATISTICS)  # fmt: skip
    family, count = "", 0
    with worker_name(sweep.out) as worker:
        while (trials is None or count < trials) and not _orphaned():
            claimed = claim(studies, worker, family)
            if claimed is None:
                break
            study, trial = claimed
            family, count = trial.user_attrs["family"], count + 1
            _one(studies, bench, study, trial)
            if done is not None:
                done(1, trial.user_attrs["wanted"])
    return []


def _one(studies: Studies, bench: Bench, study: Study, trial: Trial) -> None:
    """Compute beside other workers; time alone."""
    with locked(studies.out / TIMING, fcntl.LOCK_SH) as handle:
        try:
            point = draw(studies, trial)
            twin = twin_of(study, trial)
            if twin is None:
                outcome = dataclasses.asdict(run_trial(bench, point, partial(_quiet, handle)))
            else:
                outcome = twin.user_attrs["outcome"]
        except (BudgetError, ModelError, ExportError) as error:
            refuse(study, trial, str(error))
        else:
            record(study, trial, outcome, studies.recipe.objectives)


@contextmanager
def _quiet(handle: int) -> Iterator[None]:
    """Wait until no other worker computes; every trial that is timed ends so, and none starves."""
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_SH)


def _orphaned() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


def processes() -> Any:
    """Where worker processes come from: a server that has imported torch once for all of them."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _spawn(sweep: Sweep, studies: Studies, workers: int, trials: int | None, done: Done | None) -> list[int]:
    """Exit codes of the workers that ended early."""
    shares = [trials if trials is None else trials // workers + (i < trials % workers) for i in range(workers)]
    threads = max(1, (os.cpu_count() or 1) // workers)
    children = [processes().Process(target=_child, args=(sweep, share, threads)) for share in shares if share != 0]
    before = studies.finished()
    try:
        for child in children:
            child.start()
        while any(child.is_alive() for child in children):
            time.sleep(POLL_S)
            now = studies.finished()
            if done is not None and now > before:
                done(now - before, "")
            before = now
    except BaseException:
        for child in children:
            child.terminate()
        raise
    finally:
        for child in children:
            child.join()
    return [child.exitcode or 0 for child in children if child.exitcode]


def _child(sweep: Sweep, trials: int | None, threads: int) -> None:
    """A worker process."""
    torch.set_num_threads(threads)
    try:
        _work(sweep, trials)
    except HsccError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
