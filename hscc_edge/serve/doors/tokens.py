"""Bearer tokens of programs (RFC 6750): a file of names and hashes, one a line; the tokens themselves are kept nowhere.

A token is 256 random bits, so that one round of SHA-256 is hash enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hscc_edge import durable
from hscc_edge.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LINE = re.compile(rf"(?P<name>{NAME.pattern}) sha256:(?P<digest>[0-9a-f]{{64}})")
PREFIX = "hscc-"


@dataclass(frozen=True, slots=True)
class Token:
    """What the file holds of a token."""

    name: str
    digest: str = field(repr=False)


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens that a file allows; blank lines and those that begin with # do not count.

    Raises:
        ConfigError: if it cannot be read, or a line is not a name and a hash.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the tokens' file {path} cannot be read ({type(error).__name__}): make it with hscc-edge accounts token"
        ) from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise ConfigError(
                f"{path}, line {number}: expected a name and 'sha256:' with 64 hexadecimal digits; remove the line and "
                "make the token anew with hscc-edge accounts token"
            )
        found.append(Token(match["name"], match["digest"]))
    return tuple(found)


def add_token(path: Path, name: str) -> str:
    """Make a token, add its hash to the file, and return it: it is shown this once.

    Raises:
        ConfigError: if the name is taken or is not 1 to 64 letters, digits, dots, dashes and underscores.
        StorageError: if the file cannot be written.
    """
    known = read_tokens(path) if path.exists() else ()
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"the token's name is {name!r}: expected 1 to 64 letters, digits, dots, dashes and underscores"
        )
    if any(token.name == name for token in known):
        raise ConfigError(f"a token named {name!r} is there already: remove it first, or choose another name")
    fresh = PREFIX + secrets.token_urlsafe(32)
    _write(path, (*known, Token(name, _digest(fresh))))
    return fresh


def remove_token(path: Path, name: str) -> None:
    """Take a token back; it opens no door from the next request on.

    Raises:
        ConfigError: if there is none of that name.
        StorageError: if the file cannot be written.
    """
    known = read_tokens(path)
    left = tuple(token for token in known if token.name != name)
    if len(left) == len(known):
        names = ", ".join(token.name for token in known) or "none"
        raise ConfigError(f"no token is named {name!r}: expected one of {names}")
    _write(path, left)


def bearer(tokens: Sequence[Token], authorization: str | None) -> str | None:
    """The name of the token that an Authorization header bears; None if it bears none of these."""
    scheme, _, value = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer":
        return None
    own = _digest(value.strip())
    names = [token.name for token in tokens if hmac.compare_digest(token.digest, own)]
    return names[0] if names else None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _write(path: Path, tokens: Sequence[Token]) -> None:
    lines = [f"{token.name} sha256:{token.digest}\n" for token in tokens]
    durable.write_bytes(path, "".join(lines).encode(), mode=0o600)
