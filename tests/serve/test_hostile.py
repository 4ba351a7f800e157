"""A hundred of the attacks of benchmarks/hostile.py: none of them may hurt the daemon or whoever it serves."""

import random

import mutations
import pytest
from hostile import attack

from hscc_edge.serve.doors.content import same_data_set

SLOW = ("slow-loris HTTP",)  # waits for the end of patience, which is all that it shows


def test_hostile_peers_hurt_nobody(tmp_path, phantom, dense):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    found = attack(tmp_path, phantom, dense, tries=50, seed=seed, leave_out=SLOW, at_once=20)
    assert not found["broken"], found
    assert found["attacks"]["mutated associations"]["tries"] == 50
    assert found["instances"]["acknowledged"] > 0 and found["instances"]["refused"] > 0
    ways = found["attacks"]["wrong certificates"]["endings"]
    assert {"DICOM, certificate right: let in", "HTTP, certificate right: let in"} <= ways.keys()


@pytest.mark.parametrize("number", range(6))
def test_deep_nesting_under_a_known_uid_is_no_work(phantom, number):
    """Two of 400 levels took gigabytes and minutes to be compared."""
    content = phantom.path(phantom.instances[0]).read_bytes()
    nested = mutations.nest(content, random.Random(number))
    assert not same_data_set(content, [nested])
    assert len(nested) > len(content)
