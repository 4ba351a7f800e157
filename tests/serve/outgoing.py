"""An outbox with reports in it, made by the real report writer, and peers that take them well or badly."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pynetdicom import AE, evt

from hscc_edge.bundle import Bundle, Code, Spec
from hscc_edge.model.decision import Decision
from hscc_edge.serve import outbox, studies
from hscc_edge.serve.config import Config, Destination, ServedModel
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.results.commitment import INSTANCE, PUSH_MODEL
from hscc_edge.serve.results.measurement_report import build_report
from hscc_edge.serve.results.report import Order, next_report, write_report
from hscc_edge.serve.results.sr import reference_of
from hscc_edge.serve.station import Station, open_state

FINDINGS = {"glioma": Code("393564001", "SCT", "Glioma"), "none": Code("281900007", "SCT", "No abnormality detected")}
MR = "1.2.840.10008.5.1.4.1.1.4"
QUICK = Destination(first_retry_s=0.02, last_retry_s=0.05, timeout_s=30.0, pause_s=0.1, attempts=3)


def bundle(name: str = "brain", **changes: Any) -> Bundle:
    """A bundle as far as reports need it."""
    spec = Spec(
        name=name, version=4, network={}, preprocess=[], decision={"unit": "study", "least_probability": 0.5},
        head={"kind": "softmax", "labels": list(FINDINGS)}, findings=FINDINGS, site=Code("12738006", "SCT", "Brain"),
        procedure=Code("25056-3", "LN", "MRI unspecified body region"),
    )  # fmt: skip
    return Bundle(Path("/none"), replace(spec, **changes), "ab" * 32, {})


def headers(study: str, count: int = 2) -> tuple[pydicom.Dataset, ...]:
    """A study's headers with what a scanner would fill in."""
    found = []
    for number in range(1, count + 1):
        image = pydicom.Dataset()
        image.StudyInstanceUID, image.SeriesInstanceUID = study, f"{study}.1"
        image.SOPClassUID, image.SOPInstanceUID = MR, f"{study}.1.{number}"
        image.PatientID, image.PatientName, image.PatientBirthDate, image.PatientSex = (
            "P-77",
            "Doe^Jane",
            "19700102",
            "F",
        )
        image.AccessionNumber, image.StudyID, image.StudyDate, image.StudyTime = "A-1", "S-1", "20260102", "101500"
        image.ReferringPhysicianName, image.Modality, image.Rows, image.Columns = "Who^Doctor", "MR", 64, 64
        found.append(image)
    return tuple(found)


@dataclass(frozen=True)
class Decided:
    """A decision, the headers of its images, and their digests."""

    decision: Decision
    images: tuple[pydicom.Dataset, ...]
    digests: tuple[str, ...]


def report_of(
    bundle: Bundle, cases: Sequence[tuple[Decision, Sequence[pydicom.Dataset]]], uid: str, old: bytes | None = None
) -> bytes:
    """The report on cases by their images' headers."""
    told = [(decision, [reference_of(image) for image in images]) for decision, images in cases]
    return build_report(bundle, cases[0][1][0], told, uid, old)


def report_next(
    config: Config, journal: Journal, study: str, cases: Sequence[Decided], reason: str = ""
) -> studies.NewReport | None:
    """A study's next report, written here."""
    pairs = [(case.decision, case.digests) for case in cases]
    found = next_report(config, journal, study, "brain", bundle(), pairs, reason)
    if not isinstance(found, Order):
        return found
    told = [cases[number] for number in found.told]
    images = [(case.decision, [reference_of(image) for image in case.images]) for case in told]
    return write_report(config, bundle(), found, told[0].images[0], images)


def decided(study: str = "1.2.3", label: str | None = "glioma", count: int = 2, reason: str | None = None) -> Decided:
    """One case of a study."""
    decision = Decision(label, (0.9, 0.1), count, reason)
    return Decided(decision, headers(study, count), tuple(f"{study}-{number}" for number in range(count)))


class Desk:
    """A station of its own without processes, and reports put into its outbox."""

    def __init__(self, root: Path, *destinations: Destination, **changes: Any) -> None:
        config = Config(root / "state", (ServedModel(root, "brain"),), destinations, **changes)
        self.station = Station(config, open_state(config.state))
        self.journal: Journal = self.station.journal()

    def report(self, study: str = "1.2.3", case: Decided | None = None) -> studies.NewReport | None:
        """Put the next report on a study into the journal."""
        with self.journal.transaction() as db:
            db.execute(
                "INSERT OR IGNORE INTO studies (uid, key, first_byte, last_received, last_tick) VALUES (?, ?, 0, 0, 0)",
                (study, self.station.who(study)),
            )
        found = report_next(self.station.config, self.journal, study, [case or decided(study)] if case != [] else [])
        studies.finish(self.journal, study, [], [found] if found else [])
        return found

    def counts(self) -> dict[str, int]:
        """Deliveries by state."""
        return outbox.counts(self.journal)

    def reasons(self) -> list[str | None]:
        """The reason of each delivery."""
        return [row[0] for row in self.journal.read("SELECT reason FROM deliveries ORDER BY id")]


@contextmanager
def archive(
    on_store: Callable[[Any], int] | None = None, classes: tuple[str, ...] = (), handlers: tuple[Any, ...] = ()
) -> Iterator[tuple[int, list[pydicom.Dataset]]]:
    """(port, what was stored) of a C-STORE provider that answers what `on_store` says."""
    from pynetdicom import AllStoragePresentationContexts

    kept: list[pydicom.Dataset] = []
    lock = threading.Lock()

    def store(event: Any) -> int:
        status = on_store(event) if on_store else 0x0000
        if status == 0x0000 or status & 0xF000 == 0xB000:
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            with lock:
                kept.append(dataset)
        return status

    entity = AE(ae_title="ARCHIVE")
    for context in AllStoragePresentationContexts:
        if not classes or context.abstract_syntax in classes:
            entity.add_supported_context(context.abstract_syntax)
    entity.add_supported_context("1.2.840.10008.1.20.1")
    server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store), *handlers])
    try:
        yield server.server_address[1], kept
    finally:
        server.shutdown()


def answer_to(request: pydicom.Dataset, failed: dict[str, int] | None = None) -> pydicom.Dataset:
    """The event information of an N-EVENT-REPORT (PS3.4 table J.3-2)."""
    found = pydicom.Dataset()
    found.TransactionUID = request.TransactionUID
    kept, lost = [], []
    for item in request.ReferencedSOPSequence:
        reason = (failed or {}).get(item.ReferencedSOPInstanceUID)
        (kept if reason is None else lost).append(item)
        if reason is not None:
            item.FailureReason = reason
    found.ReferencedSOPSequence = kept
    if lost:
        found.FailedSOPSequence = lost
    return found


@contextmanager
def committing(status: int = 0x0000, answers: bool = False):
    """(port, what was stored, the requests) of an archive that takes commitment requests."""
    requests = []

    def on_action(event):
        requests.append(event.action_information)
        if answers and status == 0x0000:
            threading.Thread(target=tell, args=(event.assoc, requests[-1]), daemon=True).start()
        return status, None

    def tell(association, request):
        association.send_n_event_report(answer_to(request), 1, PUSH_MODEL, INSTANCE)

    with archive(handlers=((evt.EVT_N_ACTION, on_action),)) as (port, kept):
        yield port, kept, requests
