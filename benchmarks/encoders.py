"""Files in every transfer syntax that dcmtk, GDCM, pydicom's encoders and OpenJPH write, all from the same pictures.

What `benchmarks/transfer_syntaxes.py` tabulates and tests/data/test_decoders.py reads back. Needs dcmtk's tools and
OpenJPH's `ojph_compress` on the path.
"""

from __future__ import annotations

import subprocess
import warnings
import zlib  # noqa: F401  before gdcm: its libraries hold a zlib of their own, which libz would call if loaded after
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate

WHEEL = Path(pydicom.__file__).parent / "data" / "test_files"  # get_testdata_file would fetch what is not there
ROWS, COLUMNS = 48, 66
NEAR = 2
# bits allocated, bits stored, signed, samples
KINDS: dict[str, tuple[int, int, int, int]] = {
    "16 bit": (16, 16, 0, 1),
    "16 bit signed": (16, 16, 1, 1),
    "12 bit": (16, 12, 0, 1),
    "12 bit signed": (16, 12, 1, 1),
    "8 bit": (8, 8, 0, 1),
    "RGB": (8, 8, 0, 3),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One file to be written: by what, in which transfer syntax, from which picture, with which options.

    `bound` is the largest error allowed, as a fraction of the picture's range; 0 for lossless, None for NEAR levels.
    """

    writer: str
    syntax: uid.UID
    kind: str
    options: tuple[Any, ...] = ()
    bound: float | None = 0.0

    def __str__(self) -> str:
        words = " ".join(str(option) for option in self.options)
        return f"{self.writer}, {self.syntax.keyword}, {self.kind}{words and ', ' + words}"

    @property
    def allowed(self) -> float:
        """The largest error in levels."""
        return NEAR if self.bound is None else self.bound * 2 ** KINDS[self.kind][1]


def picture(kind: str) -> NDArray[Any]:
    """(48, 66) or (48, 66, 3): smooth, with a little noise and both ends of the stored range."""
    _, stored, signed, samples = KINDS[kind]
    rows, columns = np.mgrid[:ROWS, :COLUMNS].astype(float)
    waves = [0.5 + 0.4 * np.sin(rows / (9 + 2 * n) + n) * np.cos(columns / (13 + 3 * n)) for n in range(samples)]
    smooth = np.stack(waves, axis=-1) + np.random.default_rng(7).normal(0, 0.002, (ROWS, COLUMNS, samples))
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    values = np.rint(smooth * (2**stored - 1)).astype(np.int64) - (2 ** (stored - 1) if signed else 0)
    values = values.astype(("i" if signed else "u") + ("1" if stored == 8 else "2"))
    return values if samples == 3 else values[..., 0]


def dataset(kind: str) -> pydicom.Dataset:
    """A Secondary Capture Image of `picture(kind)`, explicit VR little endian."""
    allocated, stored, signed, samples = KINDS[kind]
    found = pydicom.Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    found.SOPClassUID = found.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid(None, [kind])
    found.StudyInstanceUID, found.SeriesInstanceUID = (uid.generate_uid(None, [kind, level]) for level in "ab")
    found.PatientID, found.PatientName, found.Modality, found.ConversionType = "none", "", "OT", "SYN"
    found.Rows, found.Columns, found.SamplesPerPixel = ROWS, COLUMNS, samples
    found.BitsAllocated, found.BitsStored, found.HighBit, found.PixelRepresentation = (
        allocated, stored, stored - 1, signed,
    )  # fmt: skip
    found.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    if samples == 3:
        found.PlanarConfiguration = 0
    found.PixelData = picture(kind).tobytes()
    found["PixelData"].VR = "OB" if allocated == 8 else "OW"
    return found


def in_memory(found: pydicom.Dataset) -> BytesIO:
    """A PS3.10 file of a data set, at its start."""
    buffer = BytesIO()
    found.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return buffer


def cases() -> Iterator[Case]:
    """Every file that is written; the bounds of lossy ones are for these smooth pictures."""
    natives = {"+ti": uid.ImplicitVRLittleEndian, "+te": uid.ExplicitVRLittleEndian, "+tb": uid.ExplicitVRBigEndian,
               "+td": uid.DeflatedExplicitVRLittleEndian}  # fmt: skip
    for kind in KINDS:
        yield from (Case("dcmconv", syntax, kind, (option,)) for option, syntax in natives.items())
        yield Case("dcmcrle", uid.RLELossless, kind)
        yield from (Case("dcmcjpeg", uid.JPEGLossless, kind, ("+el", "+sv", number)) for number in (1, 4, 6))
        yield Case("dcmcjpeg", uid.JPEGLosslessSV1, kind, ("+e1",))
        yield Case("dcmcjpls", uid.JPEGLSLossless, kind, ("+el",))
        for syntax in (uid.RLELossless, uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless,
                       uid.JPEG2000Lossless):  # fmt: skip
            yield Case("gdcm", syntax, kind)
        yield from (Case("pydicom", syntax, kind) for syntax in (uid.RLELossless, uid.JPEGLSLossless))
        yield Case("pydicom", uid.JPEG2000Lossless, kind)
        yield Case("pydicom", uid.JPEG2000, kind, ("j2k_psnr", (60,)), 0.02)
        yield Case("gdcm", uid.JPEG2000, kind, ("quality", 90), 0.02)
    for kind in ("16 bit", "12 bit", "8 bit", "RGB"):
        # JPEG-LS knows no signs: an error at the end of a signed range would turn the sign over.
        yield Case("dcmcjpls", uid.JPEGLSNearLossless, kind, ("+en", "+md", NEAR), None)
        yield Case("pydicom", uid.JPEGLSNearLossless, kind, ("jls_error", NEAR), None)
        # A PGM, which is what OpenJPH's tool reads, has no signs.
        yield from (Case("openjph", syntax, kind) for syntax in (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL))
        yield Case("openjph", uid.HTJ2K, kind, bound=0.02)
    for kind in ("8 bit", "12 bit"):
        yield Case("dcmcjpeg", uid.JPEGExtended12Bit, kind, ("+ee",), 0.03)
    yield Case("dcmcjpeg", uid.JPEGBaseline8Bit, "8 bit", ("+eb",), 0.03)
    yield Case("gdcm", uid.JPEGBaseline8Bit, "8 bit", ("quality", 95), 0.03)
    for option in ("+cr", "+s2", "+s4", "+n1", "+n2", "+np"):
        yield Case("dcmcjpeg", uid.JPEGBaseline8Bit, "RGB", ("+eb", option), 0.06)
    yield Case("dcmcjpeg", uid.JPEGExtended12Bit, "RGB", ("+ee", "+s4"), 0.06)
    for option in ("+il", "+is", "+in"):
        yield Case("dcmcjpls", uid.JPEGLSLossless, "RGB", (option,))


def write(case: Case, folder: Path) -> Path:
    """The case's file in `folder`, written if it is not there yet.

    Raises:
        RuntimeError: if its writer cannot write it.
    """
    source, target = folder / f"{case.kind}.dcm", folder / f"{case}.dcm".replace("/", " ")
    if target.exists():
        return target
    if not source.exists():
        dataset(case.kind).save_as(source, enforce_file_format=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        WRITERS.get(case.writer, _tool)(case, source, target)
    written = pydicom.dcmread(target, specific_tags=["Rows"]).file_meta.TransferSyntaxUID
    if written != case.syntax:
        raise RuntimeError(f"{case.writer} wrote {written.name}")
    return target


def _tool(case: Case, source: Path, target: Path) -> None:
    command = [case.writer, "+un"] if case.writer != "dcmconv" else [case.writer]
    done = subprocess.run(
        [*command, *map(str, case.options), str(source), str(target)], capture_output=True, text=True, timeout=60
    )
    if done.returncode or not target.exists():
        raise RuntimeError((done.stderr.strip() or f"{case.writer} wrote no file").splitlines()[-1])


def _gdcm(case: Case, source: Path, target: Path) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(source))
    kind = gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(case.syntax)))
    codec: Any = None
    if case.syntax == uid.JPEGBaseline8Bit:
        codec = gdcm.JPEGCodec()
        codec.SetQuality(case.options[1])
        codec.SetLossless(False)
    elif case.syntax == uid.JPEG2000:
        codec = gdcm.JPEG2000Codec()
        codec.SetQuality(0, case.options[1])
    if codec is not None:
        change.SetUserCodec(codec)
    if not reader.Read():
        raise RuntimeError("GDCM cannot read the source")
    change.SetTransferSyntax(kind)
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise RuntimeError("GDCM cannot encode it")
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(target))
    if not writer.Write():
        raise RuntimeError("GDCM cannot write it")


def _pydicom(case: Case, source: Path, target: Path) -> None:
    found = pydicom.dcmread(source)
    options = {case.options[0]: case.options[1]} if case.options else {}
    if isinstance(options.get("j2k_psnr"), tuple):
        options["j2k_psnr"] = list(options["j2k_psnr"])
    if case.kind == "RGB" and case.syntax in (uid.JPEG2000, uid.JPEG2000Lossless):
        found.PhotometricInterpretation = "YBR_RCT" if case.syntax == uid.JPEG2000Lossless else "YBR_ICT"
    try:
        found.compress(case.syntax, generate_instance_uid=False, **options)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise RuntimeError(str(error).splitlines()[0]) from error
    found.save_as(target)


def _openjph(case: Case, source: Path, target: Path) -> None:
    allocated, stored, _, samples = KINDS[case.kind]
    raw, stream = target.with_suffix(".ppm" if samples == 3 else ".pgm"), target.with_suffix(".j2c")
    values = picture(case.kind)
    header = f"P{6 if samples == 3 else 5} {COLUMNS} {ROWS} {2**stored - 1}\n".encode()
    raw.write_bytes(header + values.astype(">u2" if allocated == 16 else "u1").tobytes())
    lossless = case.syntax != uid.HTJ2K
    order = "RPCL" if case.syntax == uid.HTJ2KLosslessRPCL else "LRCP"
    options = ["-reversible", "true"] if lossless else ["-qstep", "0.001"]
    done = subprocess.run(
        ["ojph_compress", "-i", str(raw), "-o", str(stream), "-prog_order", order, *options],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode or not stream.exists():
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    found = pydicom.dcmread(source)
    found.PixelData = encapsulate([stream.read_bytes()])
    found["PixelData"].VR, found["PixelData"].is_undefined_length = "OB", True
    found.file_meta.TransferSyntaxUID = case.syntax
    if samples == 3:
        found.PhotometricInterpretation = "YBR_RCT" if lossless else "YBR_ICT"
    found.save_as(target)


WRITERS: dict[str, Callable[[Case, Path, Path], None]] = {"gdcm": _gdcm, "pydicom": _pydicom, "openjph": _openjph}
