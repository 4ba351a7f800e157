"""The secret key of de-identification: a file that only its owner reads, and that never stands beside the results."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from hscc_edge import durable
from hscc_edge.errors import ConfigError

SHORTEST = 32


def new_key(path: Path) -> bytes:
    """Write 32 random bytes to a new file of mode 0600.

    Raises:
        StorageError: if something stands there already, or it cannot be written.
    """
    key = secrets.token_bytes(SHORTEST)
    with durable.storage(path):
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        durable.sync_directory(path.parent)
    return key


def read_key(path: Path) -> bytes:
    """The key of a file.

    Raises:
        ConfigError: if it cannot be read, holds fewer than 32 bytes, or others than its owner may read it.
    """
    try:
        mode, key = path.stat().st_mode, path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the key {path} cannot be read ({error.strerror}): give the file of a key, or make one with --new-key"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"the key {path} has mode {stat.S_IMODE(mode):04o}: expected 0600, since whoever reads it can link the "
            "patients; run chmod 600 on it"
        )
    if len(key) < SHORTEST:
        raise ConfigError(
            f"the key {path} holds {len(key)} bytes: expected {SHORTEST} or more; make one with --new-key"
        )
    return key


def check_apart(key: Path, out: Path) -> None:
    """See that a key does not stand in the directory of the results.

    Raises:
        ConfigError: if it does.
    """
    if key.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"the key {key} would stand in {out}, which is to be given away: keep it in another place, with few rights"
        )
