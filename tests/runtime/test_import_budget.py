"""What the device must import stays small and free of torch; how long it takes is a figure of benchmarks/imports.py."""

import json
import subprocess
import sys

import pytest
from imports import CHILD, TOGETHER

LIMIT_MB = 150


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_device_imports_what_it_needs_in_150_mb():
    """VmHWM of the child alone: its ru_maxrss would begin with this process's."""
    done = subprocess.run([sys.executable, "-c", CHILD, *TOGETHER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["heavy"] == [], f"the device would load {found['heavy']}"
    assert 20 < found["peak_mb"] < LIMIT_MB, f"{found['peak_mb']:.0f} MB of {LIMIT_MB}"
