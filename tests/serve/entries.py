"""Studies in a journal without a daemon: received, reported, sent."""

import time
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from hscc_edge.serve import outbox, studies
from hscc_edge.serve.config import Config, Destination
from hscc_edge.serve.doors.content import digest_of
from hscc_edge.serve.instances import REPORTED, Receipt, of_study, receive
from hscc_edge.serve.journal import Journal
from hscc_edge.serve.outbox import NewDelivery
from hscc_edge.serve.station import Station, open_state

ROOT = "1.2.826.0.1.3680043.8.498."


def make_station(root: Path, **settings) -> Station:
    """A state directory with its key, one destination and no daemon."""
    config = Config(state=root / "state", model=(), destination=(Destination(name="pacs"),), reserve_mib=0, **settings)
    return Station(config, open_state(config.state))


def file_of(study: str, image: int, filler: bytes) -> bytes:
    """A small DICOM file that names its patient."""
    item = Dataset()
    item.SOPClassUID, item.SOPInstanceUID = MRImageStorage, f"{study}.1.{image}"
    item.StudyInstanceUID, item.SeriesInstanceUID = study, f"{study}.1"
    item.PatientID, item.PatientName = "SECRET-ID", "SECRET^NAME"
    item.add_new("PixelData", "OW", filler)
    item.file_meta = FileMetaDataset()
    item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = BytesIO()
    item.save_as(file, enforce_file_format=True)
    return file.getvalue()


def received(station: Station, journal: Journal, number: int, filler: bytes = b"ab", images: int = 1) -> str:
    """A study of that many images with that content; returns its UID."""
    study, receipts = f"{ROOT}{number}", []
    for image in range(images):
        content = file_of(study, image, filler)
        name = station.spool().keep(content)
        receipts.append(
            Receipt(f"{study}.1.{image}", "1.2.840.10008.5.1.4.1.1.4", digest_of(content), f"{study}.1", study, name,
                    len(content), "dimse", station.who(study), time.time() - 1)
        )  # fmt: skip
    receive(journal, receipts)
    return study


def finished(journal: Journal, study: str, model: str = "tiny", sends: int = 1) -> None:
    """Its report is the current one, and waits to be sent."""
    studies.claim(journal, [study])
    deliveries = [NewDelivery("pacs", f"form-{number}") for number in range(sends)]
    report = studies.NewReport(model, "d" * 64, f"{study}.9", b"sr", {}, deliveries)
    studies.finish(journal, study, [(row.id, REPORTED, None) for row in of_study(journal, study)], [report])


def sent(journal: Journal) -> None:
    """The destination has and keeps what was due."""
    while items := outbox.due(journal, "pacs"):
        for item in items:
            outbox.stored(journal, item)
            outbox.delivered(journal, item, "committed")
