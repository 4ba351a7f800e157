"""A few hundred of the attacks of benchmarks/hostile.py: none of them may hurt the daemon or whoever it serves."""

import random

from hostile import attack

SLOW = ("slow-loris HTTP",)  # waits for the end of patience, which is all that it shows


def test_hostile_peers_hurt_nobody(tmp_path, phantom, dense):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    found = attack(tmp_path, phantom, dense, tries=70, seed=seed, leave_out=SLOW)
    assert not found["broken"], found
    assert found["attacks"]["mutated associations"]["tries"] == 70
    assert found["instances"]["acknowledged"] > 0 and found["instances"]["refused"] > 0
    ways = found["attacks"]["wrong certificates"]["endings"]
    assert {"DICOM, certificate right: let in", "HTTP, certificate right: let in"} <= ways.keys()
