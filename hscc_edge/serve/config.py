"""What the daemon is told: frozen dataclasses, one a table of the TOML file; `config_file` reads and checks them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tls:
    """Mutual TLS after the (Modified) BCP 195 profiles of PS3.15 B.12 and B.13: TLS 1.2 or later, both sides certified.

    Attributes:
        certificate: PEM, own certificate and its chain.
        key: PEM, its private key, readable by the daemon's user alone.
        authorities: PEM, the authorities that peers' certificates must come from.
    """

    certificate: Path
    key: Path
    authorities: Path


@dataclass(frozen=True, slots=True)
class Listener:
    """The C-STORE provider.

    Attributes:
        port: 0 for any free one; the one in use is in state/daemon.json.
        processes: processes that accept associations; 0 for one a core, at most four.
        allowed_ae: calling AE titles that may connect; empty for any.
        allowed_addresses: networks (CIDR) or addresses that may connect; empty for any.
        sop_classes: SOP Class UIDs or keywords to accept; empty for every storage class, and private ones too.
        transfer_syntaxes: UIDs or keywords to accept; empty for all that the daemon can keep.
        max_pdu: bytes of the largest PDU that a peer may send (PS3.8 D.1).
        max_associations: in all; `max_associations_per_peer` from one address.
        max_object_mib: a larger object is refused with 0xA700 (PS3.4 B.2.3).
        idle_s: longest wait for a peer's next PDU, and for the whole of one.
        commitment: answer storage commitment requests of senders (PS3.4 J), see docs/operations.md for the rule.
        commitment_peers: "AE@host:port" of senders that get the report on an association of our own; all others get it
            on the association of their request, as long as it lasts.
        insecure: needed to listen beyond loopback without TLS, since an AE title is no authentication.
    """

    ae_title: str = "HSCC_EDGE"
    host: str = "127.0.0.1"
    port: int = 11112
    processes: int = 0
    allowed_ae: tuple[str, ...] = ()
    allowed_addresses: tuple[str, ...] = ()
    sop_classes: tuple[str, ...] = ()
    transfer_syntaxes: tuple[str, ...] = ()
    max_pdu: int = 131072
    max_associations: int = 64
    max_associations_per_peer: int = 16
    max_object_mib: int = 512
    idle_s: float = 60.0
    commitment: bool = False
    commitment_peers: tuple[str, ...] = ()
    tls: Tls | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Web:
    """The HTTP door: dashboard, STOW-RS, metrics, health.

    Attributes:
        port: 0 for any free one; the one in use is in state/daemon.json.
        stow: receive instances by STOW-RS (PS3.18 section 10.5).
        tokens: file of bearer tokens' hashes for STOW-RS and metrics (`hscc-edge accounts token`).
        session_s: a dashboard's session ends after so long without a request.
        insecure: needed to listen beyond loopback without TLS.
    """

    enabled: bool = False
    host: str = "127.0.0.1"
    port: int = 8042
    stow: bool = False
    tokens: Path | None = None
    session_s: float = 900.0
    tls: Tls | None = None
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Folder:
    """A watched folder: what is put there is taken in like a C-STORE and then removed from it.

    Attributes:
        settle_s: a file counts as whole when it has not changed for so long.
    """

    path: Path
    settle_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Study:
    """When a study is complete.

    Attributes:
        quiet_s: when nothing of it came for so long.
        on_release: also when the association that sent it is released.
        expected: also when as many instances are here as Number of Study Related Instances (0020,1208) says.
    """

    quiet_s: float = 5.0
    on_release: bool = False
    expected: bool = True


@dataclass(frozen=True, slots=True)
class Work:
    """The processes that read and infer.

    Attributes:
        runtime: a key of `hscc_edge.runtime`.
        threads: of one inference.
        readers: processes that read files while others are inferred; 0 for as many as there are processors but one, at
            most four.
        batch: images that are inferred at once, across studies; above 1 an image's last bits may depend on those that
            share the batch with it, and differ from what `validate` saw.
        timeout_s: a batch, or a file, that takes longer is given up; its studies are tried again alone, then set aside.
        memory_mib: address space of the process that infers may grow by so much; 0 for no limit.
    """

    runtime: str = "ort"
    precision: str = "fp32"
    threads: int = 1
    readers: int = 0
    batch: int = 1
    timeout_s: float = 120.0
    memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A classifier.

    Attributes:
        bundle: the bundle to start with; `hscc-edge models install` brings later ones.
        shadow: a candidate bundle that sees each study too, and sends nothing.
        max_error_rate: share of the last hundred studies that may fail before the model before it comes back.
    """

    bundle: Path
    name: str = ""
    shadow: Path | None = None
    max_error_rate: float = 0.2


@dataclass(frozen=True, slots=True)
class Route:
    """What is done with instances whose headers match; the first route that matches counts.

    Attributes:
        when: DICOM keyword -> values, `*` and `?` as in file names; every keyword must match.
        models: names of the models that look at it; empty for all.
        aside: why such instances get no result; "" for those that do.
        priority: routine, high or stat.
    """

    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    aside: str = ""
    priority: str = "routine"


# What each kind of destination can take; the first is sent where the configuration names none.
KIND_FORMS: Mapping[str, tuple[str, ...]] = {
    "dicom": ("comprehensive-3d-sr", "enhanced-sr", "secondary-capture", "key-object"),
    "stow": ("comprehensive-3d-sr", "enhanced-sr", "secondary-capture", "key-object"),
    "hl7": ("hl7-oru",),
    "fhir": ("fhir-report",),
}


@dataclass(frozen=True, slots=True)
class Report:
    """What is told beyond findings.

    Attributes:
        no_result: a study without a result gets a report that says so and why; without it only one that must take back
            an earlier report does.
    """

    no_result: bool = False


@dataclass(frozen=True, slots=True)
class Destination:
    """Where results go, and how often a refused one is tried again before it is a dead letter.

    Attributes:
        name: of this destination in pages, logs and commands.
        kind: a key of `sinks.SINKS`: dicom, stow, hl7, fhir.
        forms: keys of `forms.FORMS`: what is sent; empty for the kind's own, see `KIND_FORMS`.
        url: for stow and fhir.
        token_file: bearer token for stow and fhir.
        commitment: ask for storage commitment; only then a result counts as delivered (PS3.4 J).
        commitment_s: if no answer to that comes for so long, it is asked again.
        attempts: failures of one object before it is a dead letter; none is counted while a destination is out of reach
            or says that it is out of resources.
        timeout_s: longest wait for a connection, an answer or the network.
        pause_s: after several failures in a row nothing is sent for so long, then one object (circuit breaker).
    """

    name: str = "archive"
    kind: str = "dicom"
    ae_title: str = "ARCHIVE"
    host: str = "127.0.0.1"
    port: int = 4242
    url: str = ""
    token_file: Path | None = None
    forms: tuple[str, ...] = ()
    commitment: bool = False
    commitment_s: float = 600.0
    first_retry_s: float = 1.0
    last_retry_s: float = 300.0
    attempts: int = 100
    timeout_s: float = 30.0
    pause_s: float = 30.0
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """What is removed from the spool; the journal's rows and every report stay.

    Attributes:
        keep_days: files of ended instances are kept so long; 0 for ever.
        max_gib: and removed earlier, oldest first, where the spool holds more; 0 for no limit.
    """

    keep_days: float = 0.0
    max_gib: float = 0.0


@dataclass(frozen=True, slots=True)
class Audit:
    """Who did what: a local hash-chained file always, ATNA messages (PS3.15 A.5) by choice.

    Attributes:
        host: of the audit repository, syslog over TLS (RFC 5425); "" for none.
    """

    host: str = ""
    port: int = 6514
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class Log:
    """The daemon's own log; a change of it needs a restart.

    Attributes:
        format: text or json, one object a line.
        file: None for stderr, where systemd and containers take it up.
        max_mib: a larger file is put aside as FILE.1 and so on.
        keep: files put aside that are kept.
    """

    format: str = "text"
    file: Path | None = None
    max_mib: int = 64
    keep: int = 4


@dataclass(frozen=True, slots=True)
class Drift:
    """When today's studies are unlike those that the model was calibrated on.

    Attributes:
        window: decided cases that are looked at together.
        on: population stability index from which on an alarm is raised.
        off: and below which it ends.
        roll_back: whether an alarm brings the model before it back.
    """

    window: int = 200
    on: float = 0.25
    off: float = 0.1
    roll_back: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that `serve` needs.

    Attributes:
        state: directory of spool, journal and key; mode 0700.
        reserve_mib: below so much free space instances are refused with 0xA700.
        max_waiting: instances that may wait for work before more are refused with 0xA700.
        trusted_keys: directory of signers' public keys that belongs to root; then only signed bundles are served.
        traces: OTLP endpoint for OpenTelemetry traces; "" for none.
    """

    state: Path
    model: tuple[ServedModel, ...]
    destination: tuple[Destination, ...] = ()
    dicom: Listener = Listener()
    web: Web = Web()
    folder: tuple[Folder, ...] = ()
    study: Study = Study()
    work: Work = Work()
    route: tuple[Route, ...] = ()
    retention: Retention = Retention()
    audit: Audit = Audit()
    drift: Drift = Drift()
    report: Report = Report()
    log: Log = Log()
    reserve_mib: int = 1024
    max_waiting: int = 100_000
    trusted_keys: Path | None = None
    traces: str = ""
