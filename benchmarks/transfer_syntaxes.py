"""Which installed decoder reads which transfer syntax, how well: docs/transfer-syntaxes.md.

    python benchmarks/transfer_syntaxes.py --out docs/transfer-syntaxes.md

Writes the files of benchmarks/encoders.py in a temporary directory and decodes each with every plugin of pydicom that
is installed. A minute on one core.
"""

from __future__ import annotations

import argparse
import logging
import platform
import tempfile
import time
from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import encoders
import numpy as np
import pydicom
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID

from hscc_edge import durable
from hscc_edge.data.decoders import CELLS, FAMILIES, decode, decoder_name
from hscc_edge.errors import DicomError

PACKAGES = (
    "pydicom", "python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle", "pylibjpeg-libjpeg", "pyjpegls",
    "pillow", "numpy",
)  # fmt: skip


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/transfer-syntaxes.md"))
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # pydicom logs each plugin's failure with a traceback
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    durable.write_text(arguments.out, page(found))


def measure(folder: Path) -> dict[tuple[str, str], list[tuple[encoders.Case, float | str]]]:
    """Of every (transfer syntax, plugin): each case with its largest error in levels, or why it has none."""
    found = defaultdict(list)
    for case in encoders.cases():
        path = encoders.write(case, folder)
        dataset = pydicom.dcmread(path)
        for plugin in FAMILIES[case.syntax].plugins if case.syntax in FAMILIES else ("",):
            found[case.syntax, plugin].append((case, error_of(dataset, case, plugin)))
    return found


def error_of(dataset: pydicom.Dataset, case: encoders.Case, plugin: str) -> float | str:
    """The largest error in levels, or the reason why there is none."""
    if plugin and plugin not in get_decoder(case.syntax).available_plugins:
        return "not installed"
    try:
        decoded = decode(dataset, 0, plugin=plugin)
    except DicomError:
        return "cannot"
    samples = decoded.samples
    if decoded.photometric.startswith("YBR"):
        samples = pydicom.pixels.convert_color_space(samples, "YBR_FULL", "RGB")
    return float(np.abs(samples.astype(np.float64) - encoders.picture(case.kind)).max())


def cell(results: list[tuple[encoders.Case, float | str]]) -> str:
    """One cell of the table: the kinds of picture by what became of them."""
    groups = defaultdict(list)
    for case, result in results:
        if isinstance(result, str):
            words = result
        elif result == 0:
            words = "equal"
        elif result <= case.allowed:
            words = "within bound"
        else:
            words = f"**wrong** (error {result:.0f} of at most {case.allowed:.0f})"
        groups[words].append(case)
    total = len(results)
    return "; ".join(
        words if len(cases) == total else f"{words}: {len(cases)} of {total} ({kinds(cases)})"
        for words, cases in groups.items()
    )


def kinds(cases: list[encoders.Case]) -> str:
    """The kinds of picture of some cases, each once."""
    return ", ".join(dict.fromkeys(case.kind for case in cases))


def page(found: dict[tuple[str, str], list[tuple[encoders.Case, float | str]]]) -> str:
    """The page in Markdown."""
    rows = []
    for (syntax, plugin), results in sorted(found.items(), key=lambda item: order(*item[0])):
        name = decoder_name(plugin, syntax) if plugin else "native"
        writers = ", ".join(dict.fromkeys(case.writer for case, _ in results))
        worst = max((result for _, result in results if not isinstance(result, str)), default=None)
        error = "" if worst is None else f"{worst:g}"
        label = f"{name} ({plugin})" if plugin == "gdcm-12" else name
        rows.append(f"| {UID(syntax).name} | {label} | {writers} | {len(results)} | {cell(results)} | {error} |")
    header = (
        "| transfer syntax | decoder | written by | files | result | largest error, levels |\n|---|---|---|---|---|---|"
    )
    return TEXT.format(
        rows="\n".join((header, *rows)), date=time.strftime("%Y-%m-%d"), machine=machine(), versions=versions()
    )


def order(syntax: str, plugin: str) -> tuple[int, int]:
    """Uncompressed first, then as FAMILIES has them; plugins in the order in which they are tried."""
    syntaxes = [*sorted(CELLS - FAMILIES.keys()), *FAMILIES]
    return syntaxes.index(syntax), FAMILIES[syntax].plugins.index(plugin) if plugin else 0


def machine() -> str:
    """Architecture, operating system and Python."""
    return f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"


def versions() -> str:
    """Installed versions of the decoders' packages."""
    lines = []
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} not installed")
    return ", ".join(lines)


TEXT = """# Transfer syntaxes

What `hscc_edge` reads, by which decoder. Decoders are tried in the order of the rows; `Image.decoder` says which one
read a file. Everything here is under a permissive licence but pylibjpeg-libjpeg (GPL-3.0), which only
`pip install 'hscc-edge[gpl-decoders]'` brings. Made by `python benchmarks/transfer_syntaxes.py`.

Every file holds one of six pictures of 48 x 66 (16 bit and 12 bit, each unsigned and signed; 8 bit; RGB). "Equal"
means equal to the last level; "within bound" is for lossy files: two levels for JPEG-LS near-lossless, else 2 % of the
range for JPEG 2000, 3 % for JPEG and 6 % for JPEG with subsampled colours, on these smooth pictures.

{rows}

- JPEG Extended of 12 bits is decoded by GDCM through a plugin of our own (`data/jpeg12.py`), equal to dcmtk's
  `dcmdjpeg` in every sample; pydicom's plugins decode it with pylibjpeg-libjpeg only.
- Overlays in unused high bits are cut off, samples at the high end of their cells (HighBit) are shifted down; what a
  lossy codec decodes to beyond the stored range takes its end.
- Before a native decoder sees a JPEG, JPEG-LS or JPEG 2000 codestream, its size must be the header's, and its end
  marker must be there: a file that was cut off is refused, not shown in part.
- GDCM has ended the process on damaged JPEG files (an exception that nobody catches), so that it reads JPEG of 8 bits
  no more, and of others only what has passed the checks above. What comes from outside is best read through
  `data/contained.py`, in a process that may end: `python benchmarks/fuzz_dicom.py` tries both on hostile files.
- Not read: MPEG, H.264 and HEVC video, JPEG XL, JPEG with spectral selection or progressive scans (retired), JPIP.

{date}; {machine}; {versions}
"""

if __name__ == "__main__":
    main()
