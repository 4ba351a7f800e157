"""Preprocessed pixels on disk, found by what they were made from: a changed file, step or rule never meets an old one.

An entry is 32 bytes (sha256 of the rest) and a .npy array of float32. It is read without pickle, so that a file that
somebody else put there can be wrong pixels at most, and only if it bears its own digest: keep the directory private.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
import pydicom
import scipy
from numpy.typing import NDArray

from hscc_edge import __version__, durable
from hscc_edge.digest import sha256_of
from hscc_edge.errors import DicomError

Pixels = NDArray[np.float32]
CODE = (__version__, np.__version__, scipy.__version__, PIL.__version__, pydicom.__version__)
DIGEST = hashlib.sha256().digest_size


def key_of(files: Iterable[Path], *facts: object) -> str:
    """sha256 over the content of the files, in any order, the facts by their repr, and the versions of the code.

    Raises:
        DicomError: if a file cannot be read.
    """
    parts = [*sorted(file_digest(path) for path in files), *map(repr, facts), repr(CODE)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, read in blocks.

    Raises:
        DicomError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return sha256_of(file)
    except OSError as error:
        raise DicomError(f"{path} cannot be read ({error.strerror}): give a DICOM file") from error


def kept(directory: Path, key: str, make: Callable[[], Pixels]) -> Pixels:
    """The entry `key`, made and written if it is absent or damaged.

    Raises:
        StorageError: if the directory cannot be written.
    """
    path = directory / key[:2] / key
    found = _read(path)
    if found is not None:
        return found
    made, content = make(), io.BytesIO()
    np.save(content, made, allow_pickle=False)
    durable.write_bytes(path, hashlib.sha256(content.getbuffer()).digest() + content.getvalue())
    return made


def _read(path: Path) -> Pixels | None:
    try:
        content = path.read_bytes()
        if hashlib.sha256(memoryview(content)[DIGEST:]).digest() != content[:DIGEST]:
            return None
        pixels = np.load(io.BytesIO(content[DIGEST:]), allow_pickle=False)
    except (OSError, ValueError):
        return None
    return pixels if isinstance(pixels, np.ndarray) and pixels.dtype == np.float32 else None
