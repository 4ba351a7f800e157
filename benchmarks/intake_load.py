"""Real-sized MR instances, and dcmtk's storescu as many times in parallel as asked, with the time of every C-STORE."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

SIDE = 512  # 16-bit pixels: half a megabyte
SLICES = 100
SOP_SLOT = "1.2.826.0.1.3680043.8.498.1.100000000000000.1000000000000000"
LOG = """log4cplus.rootLogger = INFO, console
log4cplus.appender.console = log4cplus::ConsoleAppender
log4cplus.appender.console.logToStdErr = true
log4cplus.appender.console.layout = log4cplus::PatternLayout
log4cplus.appender.console.layout.ConversionPattern = %D{%s.%q} %m%n
"""
SENT, ANSWERED = "Sending Store Request", "Received Store Response (Success)"


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of some senders saw.

    Attributes:
        seconds: from the start of the first sender to the end of the last one.
        response_ms: of each acknowledged instance, from storescu's "Sending Store Request" to its "Received Store
            Response", hence with the transfer; by the sender's clock in milliseconds.
    """

    seconds: float
    response_ms: tuple[float, ...]

    @property
    def per_second(self) -> float:
        """Acknowledged instances a second."""
        return len(self.response_ms) / self.seconds

    def percentile_ms(self, share: float) -> float:
        """A percentile of the responses."""
        return float(np.percentile(self.response_ms, share)) if self.response_ms else float("nan")


def make_instances(root: Path, count: int) -> list[Path]:
    """`count` MR images of half a megabyte with UIDs of their own, in studies of `SLICES`; those there are kept."""
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = root / f"{number:06d}.dcm"
        paths.append(path)
        if path.exists():
            continue
        if number % SLICES == 0 or number == 0:
            template = _template(root, number // SLICES)
        path.write_bytes(template.replace(SOP_SLOT.encode(), _sop(number).encode()))
    return paths


def _sop(number: int) -> str:
    return f"{SOP_SLOT[:-6]}{number:06d}"


def _template(root: Path, study: int) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, SOP_SLOT
    dataset.StudyInstanceUID = f"1.2.826.0.1.3680043.8.498.2.{study}"
    dataset.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.3.{study}"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "Load^Made", "1", "", "O"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber, dataset.ReferringPhysicianName = "", "", "", ""
    dataset.Modality, dataset.Manufacturer, dataset.StudyID, dataset.SeriesNumber = "MR", "made", "1", 1
    dataset.InstanceNumber, dataset.ImageType = 1, ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "SE", "NONE", ""
    dataset.MRAcquisitionType, dataset.EchoTime, dataset.EchoTrainLength, dataset.RepetitionTime = "2D", 10, 1, 500
    dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.5], 5
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = "1.2.3.4", ""
    dataset.Rows = dataset.Columns = SIDE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    noise = np.random.default_rng(study).integers(0, 4096, SIDE * SIDE, dtype=np.uint16)
    dataset.PixelData = noise.tobytes()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = root / "template"
    dataset.save_as(path, enforce_file_format=True)
    content = path.read_bytes()
    path.unlink()
    return content


PATIENT = ("-ta", "3600", "-td", "3600")  # storescp serves one association at a time: the others wait for theirs


def send(port: int, title: str, parts: Sequence[Sequence[Path]], scratch: Path, *options: str) -> Load:
    """Send each part by a storescu of its own, all at once, each over one association."""
    config = scratch / "storescu.cfg"
    config.write_text(LOG)
    logs = [scratch / f"storescu-{number}.log" for number in range(len(parts))]
    start, senders = time.perf_counter(), []
    for part, log in zip(parts, logs, strict=True):
        with log.open("wb") as out:
            words = ["storescu", "-lc", str(config), "-aec", title, "-xe", *PATIENT, *options, "127.0.0.1", str(port)]
            senders.append(subprocess.Popen([*words, *map(str, part)], stdout=out, stderr=out))
    codes = [sender.wait() for sender in senders]
    seconds = time.perf_counter() - start
    for code, log in zip(codes, logs, strict=True):
        if code:
            raise RuntimeError(f"storescu failed: {log.read_text()[-2000:]}")
    return Load(seconds, tuple(time_ms for log in logs for time_ms in _responses(log)))


def _responses(log: Path) -> list[float]:
    found, sent = [], None
    for line in log.read_text(errors="replace").splitlines():
        if not (match := re.match(r"([\d.]+) (.*)", line)):
            continue
        if match[2].startswith(SENT):
            sent = float(match[1])
        elif match[2].startswith(ANSWERED) and sent is not None:
            found.append((float(match[1]) - sent) * 1000)
            sent = None
    return found
