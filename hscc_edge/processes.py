"""Worker processes that may be started from a process with threads."""

from __future__ import annotations

import multiprocessing
from typing import Any


def served(*modules: str) -> Any:
    """A multiprocessing context whose processes come from a server that imports these modules once for all of them.

    The server has no thread when a process is forked from it. One that is forked from here takes along the locks that
    other threads hold at that moment (torch's, ONNX Runtime's, a queue's), and may wait for them for ever.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context
