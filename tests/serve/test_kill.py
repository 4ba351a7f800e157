"""kill -9 at random moments while dcmtk sends: nothing acknowledged is lost, nothing is reported twice."""

import random

from kill_daemon import run_points


def test_nothing_acknowledged_is_lost(tmp_path, phantom, dense):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    summary = run_points(tmp_path, phantom, dense, points=5, seed=seed)
    assert summary["acknowledged"] > 0
    assert summary["lost"] == 0
    assert summary["not_terminal"] == 0
    assert summary["results"] == summary["studies"]
    assert summary["duplicated_results"] == 0
    assert summary["missing_at_archive"] == 0
