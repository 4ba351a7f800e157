"""What a long-lived process does without: imports that it never uses, memory that it needed for a moment."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import ModuleType

# What pydicom imports if it can and the daemon never uses: other processes decode, and no test files are fetched.
UNUSED = ("gdcm", "jpeg_ls", "openjpeg", "pylibjpeg", "requests", "rle", "tqdm")


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Let optional packages look as if they were not installed to what is imported inside; those imported already stay.

    What other packages import if they can costs a daemon memory and time for the years that it runs.
    """
    modules: dict[str, ModuleType | None] = dict(sys.modules)
    hidden = [name for name in names if name not in modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: "not installed", as importlib says
    try:
        yield
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def trim() -> None:
    """Give back what was needed for a moment (malloc_trim(3), where there is one)."""
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def same_python(*words: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a Python that imports from where this one does; from its directory not, since 3.11."""
    safe = ("-P",) if sys.version_info >= (3, 11) else ()
    return [sys.executable, *safe, *words], {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
