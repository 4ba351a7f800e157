"""When the certificates end that the configuration names: of its own doors, its destinations, the audit repository."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hscc_edge.errors import extra
from hscc_edge.serve.config import Config, Tls

DAY_S = 86_400.0
WARN_DAYS, ALARM_DAYS = 30, 7


@dataclass(frozen=True, slots=True)
class Certificate:
    """What the first to end of a PEM file's certificates says.

    Attributes:
        used_for: such as "dicom" or "destination archive".
        part: own or authorities.
        ends: seconds since 1970; None if the file cannot be read, and then `fault` says why.
    """

    used_for: str
    part: str
    path: Path
    ends: float | None
    issuer: str = ""
    fault: str = ""

    @property
    def days(self) -> float | None:
        """Days until it ends, negative when it has."""
        return None if self.ends is None else (self.ends - time.time()) / DAY_S

    @property
    def level(self) -> str:
        """bad, warn or good."""
        if self.days is None or self.days < ALARM_DAYS:
            return "bad"
        return "warn" if self.days < WARN_DAYS else "good"


def certificates(config: Config) -> list[Certificate]:
    """Every certificate file that the configuration names, those that end first before."""
    found = [_read(name, part, path) for name, tls in _named(config) for part, path in _files(tls)]
    return sorted(found, key=lambda item: item.ends if item.ends is not None else 0.0)


def _named(config: Config) -> Iterator[tuple[str, Tls]]:
    places = [("dicom", config.dicom.tls), ("web", config.web.tls), ("audit", config.audit.tls)]
    places += [(f"destination {item.name}", item.tls) for item in config.destination]
    return ((name, tls) for name, tls in places if tls is not None)


def _files(tls: Tls) -> tuple[tuple[str, Path], ...]:
    return ("own", tls.certificate), ("authorities", tls.authorities)


def _read(used_for: str, part: str, path: Path) -> Certificate:
    with extra("device"):
        from cryptography import x509
    try:
        held = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        return Certificate(used_for, part, path, None, fault=f"cannot be read ({type(error).__name__})")
    first = min(held, key=lambda item: item.not_valid_after_utc)
    issuer = first.issuer.rfc4514_string()
    return Certificate(used_for, part, path, first.not_valid_after_utc.timestamp(), issuer[:80])
