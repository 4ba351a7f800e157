"""How much memory a process takes that holds a bundle's runtime, as the daemon's does."""

from __future__ import annotations

import subprocess
import sys

from hscc_edge.bundle import Bundle
from hscc_edge.errors import EngineError

LONGEST_S = 300.0
# The peak of a process of its own: its imports, the opened model, two images.
HOLD = """
import resource, sys
from pathlib import Path
from hscc_edge.bundle import read_bundle
from hscc_edge.runtime.startup import timed_open
root, kind, precision, threads = sys.argv[1:]
timed_open(read_bundle(Path(root)), kind, precision=precision, threads=int(threads), unverified=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mib(bundle: Bundle, kind: str, precision: str, threads: int = 1) -> float:
    """Peak resident MiB; memory of a card of its own is not in it.

    Raises:
        EngineError: if the process fails.
    """
    words = [sys.executable, "-c", HOLD, str(bundle.root), kind, precision, str(threads)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LONGEST_S, check=True)
        return int(done.stdout.split()[-1]) / 1024
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        raise EngineError(
            f"the memory of {bundle.root} on {kind} could not be measured ({type(error).__name__}): see whether "
            "hscc-edge validate runs there"
        ) from error
