"""Several processes that share work: what they found comes in order, and one that was killed is one sentence."""

import os
import re

import pytest

from hscc_edge.data.inspection import workers
from hscc_edge.errors import StorageError


def test_results_come_in_the_order_of_the_arguments():
    with workers(2) as spread:
        assert list(spread(abs, range(-20, 0))) == list(range(20, 0, -1))


def test_a_killed_process_is_one_sentence():
    said = "a process that reads pictures was killed, for want of memory perhaps: run this again with fewer --jobs"
    with pytest.raises(StorageError, match=re.escape(said)), workers(2) as spread:
        list(spread(os._exit, [1]))
