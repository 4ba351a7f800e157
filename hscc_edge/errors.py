"""The exception tree; every message is one sentence: what, the value met, what was expected, what to do.

HsccError                 exit code 2: the user can mend it
├── InputError            a path, file or argument that is missing, empty or malformed
│   ├── ConfigError       a TOML file with an unknown key or a value out of range
│   ├── DicomError        a file that is not DICOM, or cannot be decoded
│   ├── CohortError       a cohort that cannot be used for what was asked
│   └── BundleError       a directory that is no bundle, or whose digests do not stand
├── BudgetError           a budget that cannot be met
├── ModelError            a network that cannot be built, traced or compressed
├── ExportError           an ONNX graph that is broken or not equal to its network
├── EngineError           TensorRT missing, or an engine that is not what was asked for
├── RemoteError           another machine that cannot be reached, or cannot do what it was asked to
├── StorageError          a full disk, an unwritable directory, a port in use
├── MissingExtraError     an optional package that is not installed (also an ImportError)
└── GateError             exit code 1: the evidence does not support the claim

No message names a patient, an accession number or a UID.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NoReturn


class HsccError(Exception):
    """Something the user can mend; the command line prints it as one sentence."""

    exit_code = 2


class InputError(HsccError):
    """A path, file or argument that is missing, empty or malformed."""


class ConfigError(InputError):
    """A TOML file with an unknown key or a value out of range."""


class DicomError(InputError):
    """A file that is not DICOM, or whose pixels cannot be decoded."""


class CohortError(InputError):
    """A cohort that cannot be used for what was asked."""


class BundleError(InputError):
    """A directory that is no bundle, or whose digests do not stand."""


class BudgetError(HsccError):
    """A budget that cannot be met; the message says the largest that can."""


class ModelError(HsccError):
    """A network that cannot be built, traced or compressed."""


class ExportError(HsccError):
    """An ONNX graph that is broken or not equal to its network."""


class EngineError(HsccError):
    """TensorRT missing, or an engine that is not what was asked for."""


class RemoteError(HsccError):
    """Another machine that cannot be reached over ssh, or whose hscc-edge cannot do what it was asked to."""


class StorageError(HsccError):
    """A full disk, an unwritable directory or a port in use."""


class MissingExtraError(HsccError, ImportError):
    """An optional package that is not installed."""


class GateError(HsccError):
    """The evidence does not support the claim."""

    exit_code = 1


def leave(error: HsccError) -> NoReturn:
    """End the program with one sentence on stderr and the error's exit code."""
    sys.stderr.write(f"error: {error}\n")
    sys.exit(error.exit_code)


def require(package: str, name: str) -> None:
    """Hold that a package is installed that is imported later; raises as `extra` does."""
    with extra(name):
        if find_spec(package) is None:
            raise ModuleNotFoundError(name=package)


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turn a missing optional package, imported inside, into one error naming the extra `name`.

    Raises:
        MissingExtraError: if a third-party module imported inside is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "hscc_edge"):
            raise
        raise MissingExtraError(
            f"the package '{package}' is not installed, and this step needs it: run pip install 'hscc_edge[{name}]'",
            name=error.name,
        ) from error
