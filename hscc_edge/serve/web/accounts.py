"""Local accounts of the dashboard: a file in the state directory (mode 0600) with names, roles and hashes by argon2id.

`generation` grows when an account's password or role changes; a session that began under an older one has ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from hscc_edge import durable
from hscc_edge.errors import ConfigError, StorageError, extra

with extra("device"):
    from argon2 import PasswordHasher
    from argon2.exceptions import InvalidHashError, VerificationError

VIEWER, OPERATOR = "viewer", "operator"
ROLES = (VIEWER, OPERATOR)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
SHORTEST, LONGEST = 12, 256


@dataclass(frozen=True, slots=True)
class Account:
    """A person who may sign in."""

    name: str
    role: str
    hash: str = field(repr=False)
    generation: int = 1


def accounts_file(state: Path) -> Path:
    """Where the accounts of a state directory are."""
    return state / "accounts.json"


def read_accounts(path: Path) -> dict[str, Account]:
    """Accounts by name; none if there is no file.

    Raises:
        StorageError: if the file cannot be read or is not what `add_account` wrote: then nobody can sign in.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return {item["name"]: Account(**item) for item in raw["accounts"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"the accounts in {path} cannot be read ({type(error).__name__}): restore the file from a backup, or "
            "remove it and make the accounts anew with hscc-edge accounts add"
        ) from error


def add_account(path: Path, name: str, role: str, password: str) -> bool:
    """Make an account, or give it another password and role, which ends its sessions; True if it is new.

    Raises:
        ConfigError: if the name, the role or the password is not acceptable.
        StorageError: if the file cannot be read or written.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"the account's name is {name!r}: expected 1 to 64 letters, digits, dots, dashes and underscores"
        )
    if role not in ROLES:
        raise ConfigError(f"the role is {role!r}: expected one of {', '.join(ROLES)}")
    if not SHORTEST <= len(password) <= LONGEST:
        raise ConfigError(
            f"the password has {len(password)} characters: expected {SHORTEST} to {LONGEST}; several words make a "
            "good one"
        )
    if password.strip().casefold() == name.casefold() or len(set(password)) < 4:
        raise ConfigError("the password is the account's name or one character over and over: choose another")
    with _held(path) as known:
        old = known.get(name)
        generation = old.generation + 1 if old is not None else secrets.randbelow(1 << 30)
        known[name] = Account(name, role, _hasher().hash(password), generation)
    return old is None


def remove_account(path: Path, name: str) -> None:
    """Take an account away, which ends its sessions.

    Raises:
        ConfigError: if there is none of that name.
        StorageError: if the file cannot be read or written.
    """
    with _held(path) as known:
        if name not in known:
            raise ConfigError(f"no account is named {name!r}: expected one of {', '.join(sorted(known)) or 'none'}")
        del known[name]


def authenticate(accounts: Mapping[str, Account], name: str, password: str) -> Account | None:
    """The account whose password this is. An unknown name takes as long as a wrong password."""
    account = accounts.get(name)
    try:
        _hasher().verify(account.hash if account is not None else _nobody(), password[: LONGEST + 1])
    except (VerificationError, InvalidHashError):
        return None
    return account


@cache
def _hasher() -> PasswordHasher:
    """argon2id with the second recommended parameters of RFC 9106 section 4: 64 MiB, three passes."""
    return PasswordHasher()


@cache
def _nobody() -> str:
    return _hasher().hash(secrets.token_hex(16))


@contextmanager
def _held(path: Path) -> Iterator[dict[str, Account]]:
    """The accounts, to be changed by one process at a time; written when the body succeeds."""
    with durable.storage(path):
        handle = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read_accounts(path)
        yield known
        rows = [asdict(account) for _, account in sorted(known.items())]
        durable.write_bytes(path, (json.dumps({"accounts": rows}, indent=2) + "\n").encode(), mode=0o600)
        give_to_owner(path.parent, path, path.with_suffix(".lock"))


def give_to_owner(state: Path, *paths: Path) -> None:
    """What root writes for a daemon shall belong to its user, who owns the state directory, or it could not read it."""
    if os.geteuid() == 0:
        owner = state.stat()
        for path in paths:
            os.chown(path, owner.st_uid, owner.st_gid)
