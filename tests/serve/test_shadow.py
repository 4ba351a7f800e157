"""A shadow sees each study beside the active model: compared, never sent, and its crashes cost nothing else."""

import os
import signal
from contextlib import suppress

import numpy as np
import pytest
from statsmodels.stats.proportion import proportion_confint
from workbench import Bench, benches, less_sure, slices

from hscc_edge.bundle import read_bundle
from hscc_edge.serve.config import Config, ServedModel
from hscc_edge.serve.instances import REPORTED
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.station import Station, open_state
from hscc_edge.serve.worker import models
from hscc_edge.serve.worker.comparison import compare, wilson

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def candidate(dense, tmp_path_factory):
    return less_sure(dense, tmp_path_factory.mktemp("candidate") / "bundle")


@pytest.fixture
def bench(tmp_path, dense, candidate):
    with benches(tmp_path, dense, model=(ServedModel(dense, "tiny", shadow=candidate.root),)) as build:
        yield build


def shadowed(made: Bench) -> int:
    done = 0
    while looked := made.worker.shadow():
        done += looked
    return done


def test_the_shadow_is_compared_and_nothing_of_it_is_sent(bench, phantom, dense, candidate):
    made = bench()
    first = read_bundle(dense)
    uids = [made.put(slices(phantom, str(number), 3, 3 * number)) for number in range(5)]
    made.work()
    assert shadowed(made) == 5
    found = compare(made.journal, first.digest, candidate.digest)
    assert (found.cases, found.agreement, found.flips, found.failed) == (5, 1.0, {}, 0)
    assert found.kl > 0 and found.high == 1.0 and 0.4 < found.low < 0.7 and min(found.latency_ms) > 0
    assert made.journal.read("SELECT DISTINCT digest FROM reports") == [(first.digest,)]
    assert all(made.states(uid) == [(REPORTED, None)] * 3 for uid in uids)
    assert shadowed(made) == 0
    made.put(slices(phantom, "0", 4)[3:])
    made.work()
    assert shadowed(made) == 1 and compare(made.journal, first.digest, candidate.digest).cases == 5


def test_a_shadow_that_crashes_costs_its_own_observation_alone(bench, phantom, dense, candidate):
    class Crashing:
        well = 4  # the reference set

        def __call__(self, logits: np.ndarray) -> np.ndarray:
            self.well -= 1
            if self.well < 0:
                os.kill(os.getpid(), signal.SIGSEGV)
            return logits

    made = bench(deeds={candidate.digest: Crashing()})
    uid = made.put(slices(phantom, "1", 3))
    made.work()
    assert shadowed(made) == 1 and made.states(uid) == [(REPORTED, None)] * 3
    found = compare(made.journal, read_bundle(dense).digest, candidate.digest)
    assert (found.cases, found.failed) == (0, 1)
    assert made.journal.read("SELECT failed FROM observations WHERE shadow = 1") == [
        ("the inference died (signal 11)",)
    ]
    made.put(slices(phantom, "2", 3, 3))
    assert made.work() == 1


def test_a_shadow_may_become_active_and_end(bench, phantom, candidate):
    made = bench()
    assert models.find(made.journal, "tiny", models.SHADOW).digest == candidate.digest
    models.set_shadow(made.journal, "tiny", None)
    made.worker.refresh()
    made.put(slices(phantom, "1", 3))
    made.work()
    assert shadowed(made) == 0
    models.set_shadow(made.journal, "tiny", candidate.digest)
    models.activate(made.journal, candidate.digest)
    made.worker.refresh()
    made.put(slices(phantom, "2", 3, 3))
    made.work()
    assert made.journal.read("SELECT digest FROM reports ORDER BY id DESC LIMIT 1") == [(candidate.digest,)]


@pytest.mark.parametrize(("count", "of"), [(0, 5), (5, 5), (3, 7), (950, 1000)])
def test_the_interval_is_wilsons(count, of):
    assert wilson(count, of) == pytest.approx(proportion_confint(count, of, method="wilson"), abs=1e-12)


@pytest.mark.parametrize("commits", range(4))
def test_a_start_that_is_cut_short_leaves_the_shadow_to_the_next_one(tmp_path, dense, candidate, monkeypatch, commits):
    config = Config(tmp_path / "state", (ServedModel(dense, "tiny", shadow=candidate.root),))
    station = Station(config, open_state(config.state))
    journal, transaction, allowed = station.journal(), Journal.transaction, iter(range(commits))

    def cut(self):
        if next(allowed, None) is None:
            raise OSError
        return transaction(self)

    with monkeypatch.context() as patch, suppress(OSError):
        patch.setattr(Journal, "transaction", cut)
        models.ensure(station, journal)
    models.ensure(station, journal)
    assert models.find(journal, "tiny", models.SHADOW).digest == candidate.digest
    journal.close()
