"""Imports that a long-lived process does without."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# What pydicom imports if it can and the daemon never uses: other processes decode, and no test files are fetched.
UNUSED = ("gdcm", "requests", "tqdm")


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
