"""What values of the configuration go together: each rule yields the keys and the sentence of what is wrong."""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from pydicom.uid import UID

from hscc_edge.serve.config import KIND_FORMS, Config, Destination, Listener, Web
from hscc_edge.serve.doors.contexts import SYNTAXES, uid_of
from hscc_edge.serve.studies import PRIORITIES

Keys = tuple[str | int, ...]
Fault = tuple[Keys, str]
RANGES: dict[Keys, tuple[float, float]] = {
    ("reserve_mib",): (0, math.inf), ("max_waiting",): (1, math.inf),
    ("dicom", "port"): (0, 65535), ("dicom", "processes"): (0, 64), ("dicom", "max_pdu"): (4096, 1 << 24),
    ("dicom", "max_associations"): (1, 10_000), ("dicom", "max_associations_per_peer"): (1, 10_000),
    ("dicom", "max_object_mib"): (1, 1 << 20), ("dicom", "idle_s"): (0.1, 86_400),
    ("web", "port"): (0, 65535), ("web", "session_s"): (60, 86_400),
    ("study", "quiet_s"): (0, 86_400),
    ("work", "threads"): (1, 1024), ("work", "readers"): (0, 64), ("work", "batch"): (1, 1024),
    ("work", "timeout_s"): (1, 86_400), ("work", "memory_mib"): (0, math.inf),
    ("retention", "keep_days"): (0, math.inf), ("retention", "max_gib"): (0, math.inf),
    ("audit", "port"): (1, 65535), ("log", "max_mib"): (1, 1 << 20), ("log", "keep"): (0, 1000),
    ("drift", "window"): (20, 1_000_000),
    ("drift", "on"): (0.01, 100), ("drift", "off"): (0.001, 100),
}  # fmt: skip
DESTINATION_RANGES: dict[str, tuple[float, float]] = {
    "port": (1, 65535), "attempts": (1, math.inf), "timeout_s": (0.1, 3600), "first_retry_s": (0.01, 86_400),
    "last_retry_s": (0.01, 86_400), "pause_s": (0, 86_400), "commitment_s": (0.1, 604_800),
}  # fmt: skip


def _ranges(config: Config) -> Iterator[Fault]:
    for keys, (low, high) in RANGES.items():
        value: object = config
        for key in keys:
            value = getattr(value, str(key))
        yield from _outside(keys, value, low, high)
    for number, item in enumerate(config.destination):
        for key, (low, high) in DESTINATION_RANGES.items():
            yield from _outside(("destination", number, key), getattr(item, key), low, high)
    for number, folder in enumerate(config.folder):
        yield from _outside(("folder", number, "settle_s"), folder.settle_s, 0, 86_400)


def _outside(keys: Keys, value: object, low: float, high: float) -> Iterator[Fault]:
    if not low <= float(str(value)) <= high:
        expected = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        yield keys, f"{keys[-1]} is {value}: expected {expected}"


def _titles(config: Config) -> Iterator[Fault]:
    titles: list[tuple[Keys, str]] = [(("dicom", "ae_title"), config.dicom.ae_title)]
    titles += [(("dicom", "allowed_ae"), title) for title in config.dicom.allowed_ae]
    titles += [(("destination", number, "ae_title"), item.ae_title) for number, item in enumerate(config.destination)]
    for keys, title in titles:
        if not 1 <= len(title.strip()) <= 16 or "\\" in title or not (title.isascii() and title.isprintable()):
            yield keys, f"the AE title {title!r} is not valid: expected 1 to 16 ASCII characters (PS3.5 section 6.2)"


def _addresses(config: Config) -> Iterator[Fault]:
    for address in config.dicom.allowed_addresses:
        try:
            ipaddress.ip_network(address)
        except ValueError:
            yield (
                ("dicom", "allowed_addresses"),
                f"allowed_addresses names {address!r}: expected an address or a network such as 10.1.2.0/24",
            )


def _dicom(config: Config) -> Iterator[Fault]:
    for text in config.dicom.commitment_peers:
        found = re.fullmatch(r"[^@\\]{1,16}@[^@]+:([0-9]{1,5})", text)
        if found is None or not 1 <= int(found[1]) <= 65535:
            yield (
                ("dicom", "commitment_peers"),
                f"commitment_peers names {text!r}: expected AE@host:port, the port from 1 to 65535",
            )
    for name in config.dicom.sop_classes:
        if uid_of(name) is None:
            yield ("dicom", "sop_classes"), f"sop_classes names {name!r}: expected a UID, or a keyword of PS3.6"
    for name in config.dicom.transfer_syntaxes:
        if uid_of(name) not in SYNTAXES:
            known = ", ".join(UID(uid).keyword for uid in SYNTAXES)
            yield ("dicom", "transfer_syntaxes"), f"transfer_syntaxes names {name!r}: expected some of {known}"


def _doors(config: Config) -> Iterator[Fault]:
    doors: list[tuple[str, Listener | Web]] = [("dicom", config.dicom)]
    doors += [("web", config.web)] if config.web.enabled else []
    for name, door in doors:
        if door.tls is None and not door.insecure and not is_loopback(door.host):
            yield (
                (name, "host"),
                f"host is {door.host}: a door beyond loopback needs authentication; add [{name}.tls], or set "
                f"insecure = true in [{name}] if the network is trusted",
            )


def _models(config: Config) -> Iterator[Fault]:
    if not config.model:
        yield ("model",), "no [[model]] is given: name at least one bundle to serve"
    names = Counter(item.name for item in config.model if item.name)
    for number, item in enumerate(config.model):
        if names[item.name] > 1:
            yield ("model", number, "name"), f"two models are named {item.name!r}: give each a name of its own"
        if not 0 <= item.max_error_rate <= 1:
            yield ("model", number, "max_error_rate"), f"max_error_rate is {item.max_error_rate}: expected 0 to 1"


def _routes(config: Config) -> Iterator[Fault]:
    from hscc_edge.serve.route import fault_of  # pydicom's dictionary takes a while

    names = sorted({item.name for item in config.model})
    for number, route in enumerate(config.route):
        unknown = sorted(set(route.models) - set(names))
        if unknown and "" not in names:  # a model may have its bundle's name, which is not known here
            yield (
                ("route", number, "models"),
                f"the route names the model {unknown[0]!r}: expected one of {', '.join(names)}",
            )
        for keyword in route.when:
            if fault := fault_of(keyword):
                yield ("route", number, "when"), fault
        if route.priority not in PRIORITIES:
            yield (
                ("route", number, "priority"),
                f"priority is {route.priority!r}: expected one of {', '.join(PRIORITIES)}",
            )


def _destinations(config: Config) -> Iterator[Fault]:
    names = Counter(item.name for item in config.destination)
    for number, item in enumerate(config.destination):
        if names[item.name] > 1:
            yield ("destination", number, "name"), f"two destinations are named {item.name!r}: name each its own way"
        yield from ((("destination", number, key), sentence) for key, sentence in _destination(item))


def _destination(item: Destination) -> Iterator[tuple[str, str]]:
    if item.last_retry_s < item.first_retry_s:
        yield "last_retry_s", f"last_retry_s is {item.last_retry_s}: expected at least first_retry_s"
    if item.kind not in KIND_FORMS:
        yield "kind", f"kind is {item.kind!r}: expected one of {', '.join(KIND_FORMS)}"
    known = KIND_FORMS.get(item.kind, ())
    if unknown := [form for form in item.forms if form not in known]:
        yield "forms", f"forms names {unknown[0]!r}: a {item.kind} destination takes {', '.join(known)}"
    if item.kind in ("stow", "fhir") and not item.url.startswith(("http://", "https://")):
        yield "url", f"url is {item.url!r}: expected the http or https address of the {item.kind} service"
    if item.commitment and item.kind != "dicom":
        yield "commitment", f'commitment is asked of a {item.kind} destination: only kind = "dicom" has it'


def _hysteresis(config: Config) -> Iterator[Fault]:
    if config.drift.off >= config.drift.on:
        yield ("drift", "off"), f"off is {config.drift.off}: expected less than on, {config.drift.on}"


def _records(config: Config) -> Iterator[Fault]:
    if config.log.format not in ("text", "json"):
        yield ("log", "format"), f"format is {config.log.format!r}: expected text or json"
    if config.audit.host and config.audit.tls is None:
        yield (
            ("audit", "host"),
            "audit messages name patients and go over TLS only: add [audit.tls] with certificate, key and authorities",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


RULES: tuple[Callable[[Config], Iterator[Fault]], ...] = (
    _ranges, _titles, _addresses, _dicom, _doors, _models, _routes, _destinations, _hysteresis, _records,
)  # fmt: skip
