"""What tests of the worker share."""

import pytest
from workbench import benches


@pytest.fixture
def bench(tmp_path, dense):
    """Makes workers of one's own."""
    with benches(tmp_path, dense) as build:
        yield build
