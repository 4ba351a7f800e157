"""Nothing leaves the house unasked: ONNX Runtime's own telemetry never starts."""

import os
import subprocess
import sys

# By these ONNX Runtime keeps silent of itself, so that the test would see nothing.
SILENT = {"CI", "TF_BUILD", "GITHUB_ACTIONS", "ORT_RUNNING_UNIT_TESTS", "ORT_DISABLE_TELEMETRY"}
CODE = """
import sys
from pathlib import Path
from hscc_edge.runtime.ort import OrtRuntime
import numpy as np
runtime = OrtRuntime(Path(sys.argv[1]))
runtime.infer(np.zeros((1, 1, 64, 64), np.float32))
runtime.close()
"""


def test_onnx_runtime_leaves_no_trace_of_telemetry(dense, tmp_path):
    """Its uploader keeps its session, its device's identifier and unsent events in files; none may appear."""
    places = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME"), str(tmp_path))
    kept = {name: value for name, value in os.environ.items() if name not in SILENT}
    words = [sys.executable, "-c", CODE, str(dense / "models" / "model.onnx")]
    done = subprocess.run(words, env={**kept, **places}, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == []
