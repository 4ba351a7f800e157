"""The daemon's configuration: TOML -> frozen dataclasses; an unknown key is an error."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hscc_edge.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMES = {
    "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "tuple[str, ...]": "a list of texts",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listener:
    """The C-STORE provider.

    Attributes:
        port: 0 for any free one; the one in use is in state/daemon.json.
        allowed_ae: calling AE titles that may connect; empty for any.
        allowed_addresses: networks (CIDR) or addresses that may connect; empty for any.
        max_pdu: bytes of the largest PDU that a peer may send (PS3.8 D.1).
        max_object_mib: a larger object is refused with 0xA700 (PS3.4 B.2.3).
        insecure: needed to listen beyond loopback, since an AE title is no authentication.
    """

    ae_title: str = "HSCC_EDGE"
    host: str = "127.0.0.1"
    port: int = 11112
    allowed_ae: tuple[str, ...] = ()
    allowed_addresses: tuple[str, ...] = ()
    max_pdu: int = 131072
    max_associations: int = 16
    max_object_mib: int = 512
    idle_s: float = 60.0
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Destination:
    """Where reports go, and how often a refused one is tried again before it is a dead letter.

    Attributes:
        timeout_s: longest wait for a connection, an answer or the network.
    """

    ae_title: str
    host: str
    port: int
    first_retry_s: float = 1.0
    last_retry_s: float = 300.0
    attempts: int = 100
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that `serve` needs.

    Attributes:
        state: directory of spool, journal and key; mode 0700.
        quiet_s: a study is complete when nothing of it came for so long.
        reserve_mib: below so much free space instances are refused with 0xA700.
        batch: images of a study that are inferred at once; above 1 an image's last bits may depend on those that share
            the batch with it, and differ from what `validate` saw.
        modalities: others are kept, but get no result.
    """

    state: Path
    bundle: Path
    destination: Destination
    dicom: Listener = Listener()
    runtime: str = "ort"
    precision: str = "fp32"
    threads: int = 1
    batch: int = 1
    quiet_s: float = 5.0
    reserve_mib: int = 1024
    modalities: tuple[str, ...] = ("MR", "CT", "OT")


def read_config(path: Path) -> Config:
    """Read a configuration; relative paths in it are relative to its directory.

    Raises:
        ConfigError: if the file is missing, is no TOML, has an unknown key, lacks one, or a value is out of range.
    """
    if not path.is_file():
        raise ConfigError(f"the configuration {path} does not exist: copy deploy/serve.example.toml and edit it")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the configuration {path} is not TOML ({error}): mend that line") from error
    for key in ("state", "bundle", "destination"):
        if key not in raw:
            raise ConfigError(f"the configuration {path} lacks '{key}': see deploy/serve.example.toml")
    for key in ("state", "bundle"):
        if not isinstance(raw[key], str) or not raw[key]:
            raise ConfigError(f"{key} in {path} is {raw[key]!r}: expected the path of a directory")
    raw["dicom"] = _table(path, "dicom", Listener, raw.get("dicom", {}))
    raw["destination"] = _table(path, "destination", Destination, raw["destination"])
    for key in ("state", "bundle"):
        raw[key] = path.parent / raw[key]
    config: Config = _table(path, "top level", Config, raw)
    _check(config)
    return config


def _table(path: Path, name: str, kind: Any, raw: object) -> Any:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"[{name}] in {path} is no table: see deploy/serve.example.toml")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    if unknown := sorted(raw.keys() - fields.keys()):
        raise ConfigError(f"{path} has the unknown key '{unknown[0]}' in {name}: expected one of {', '.join(fields)}")
    for key, item in fields.items():
        if key not in raw and item.default is dataclasses.MISSING:
            raise ConfigError(f"{path} lacks '{key}' in {name}: see deploy/serve.example.toml")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    for key, value in values.items():
        _check_type(path, name, key, value, str(fields[key].type))
    return kind(**values)


def _check_type(path: Path, table: str, key: str, value: object, expected: str) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "str": (str,), "int": (int,), "float": (int, float), "bool": (bool,), "tuple[str, ...]": (tuple,)
    }  # fmt: skip
    wanted = kinds.get(expected, (object,))
    right = isinstance(value, wanted) and (expected == "bool" or not isinstance(value, bool))
    right &= not isinstance(value, tuple) or all(isinstance(item, str) for item in value)
    if not right or (isinstance(value, float) and not math.isfinite(value)):
        raise ConfigError(f"{key} in {table} of {path} is {value!r}: expected {NAMES.get(expected, expected)}")


def _check(config: Config) -> None:
    listener, destination = config.dicom, config.destination
    _check_range("port in [dicom]", listener.port, 0, 65535)
    _check_range("port in [destination]", destination.port, 1, 65535)
    _check_range("max_pdu", listener.max_pdu, 4096, 1 << 24)
    _check_range("reserve_mib", config.reserve_mib, 0)
    _check_range("quiet_s", config.quiet_s, 0)
    for name in ("max_associations", "max_object_mib"):
        _check_range(name, getattr(listener, name), 1)
    _check_range("threads", config.threads, 1)
    _check_range("batch", config.batch, 1, 1024)
    _check_range("attempts", destination.attempts, 1)
    for name, value in (("idle_s", listener.idle_s), ("timeout_s", destination.timeout_s)):
        _check_range(name, value, 0.1)
    _check_range("first_retry_s", destination.first_retry_s, 0.01)
    _check_range("last_retry_s", destination.last_retry_s, destination.first_retry_s)
    for title in (listener.ae_title, destination.ae_title, *listener.allowed_ae):
        if not 1 <= len(title.strip()) <= 16 or "\\" in title or not (title.isascii() and title.isprintable()):
            raise ConfigError(f"the AE title {title!r} is not valid: expected 1 to 16 ASCII characters (PS3.5 6.2)")
    for address in listener.allowed_addresses:
        _check_network(address)
    if not listener.insecure and not _is_loopback(listener.host):
        raise ConfigError(
            f"[dicom] host is {listener.host}: beyond loopback the door has no authentication yet; set insecure = true "
            "in [dicom] if the network is trusted"
        )


def _check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise ConfigError(f"{name} is {value}: expected {expected}; mend the configuration")


def _check_network(address: str) -> None:
    try:
        ipaddress.ip_network(address)
    except ValueError as error:
        raise ConfigError(
            f"allowed_addresses names {address!r}: expected an address or a network such as 10.1.2.0/24"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
