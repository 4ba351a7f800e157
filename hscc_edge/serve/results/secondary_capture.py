"""The result as a picture (Secondary Capture) for viewers that show no SR: its words, and nothing about the patient."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from hscc_edge import __version__
from hscc_edge.errors import extra
from hscc_edge.serve.results.result import Result
from hscc_edge.serve.results.sr import DESCRIPTION, SERIES_NUMBER, carry, derived_uid, file_of

with extra("device"):
    from highdicom.sc import SCImage

WIDTH, MARGIN, LINE, SIZE = 768, 24, 28, 20  # pixels
INK, PAPER = 235, 0
LONGEST = 56  # characters of a line, wide ones too


def secondary_capture(result: Result) -> tuple[str, bytes]:
    """(SOP Instance UID, file) of the picture."""
    uid, report = derived_uid("secondary-capture", result.sop), result.dataset
    image: Any = SCImage(
        pixel_array=draw(result.lines()),
        photometric_interpretation="MONOCHROME2",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=str(report.StudyInstanceUID),
        series_instance_uid=derived_uid("secondary-capture", str(report.SeriesInstanceUID)),
        series_number=SERIES_NUMBER + 2,
        sop_instance_uid=uid,
        instance_number=int(report.InstanceNumber),
        manufacturer="hscc_edge",
        patient_orientation=("L", "P"),
    )
    carry(image, report)
    image.SeriesDescription = DESCRIPTION
    image.SoftwareVersions = __version__
    image.PatientOrientation = image.Laterality = None  # a page of words has none
    image.BurnedInAnnotation = "NO"
    image.ConversionType = "WSD"
    return uid, file_of(image)


def draw(lines: list[str]) -> NDArray[np.uint8]:
    """Text as pixels (rows, columns)."""
    wrapped = [line[start : start + LONGEST] for line in lines for start in range(0, max(len(line), 1), LONGEST)]
    picture = Image.new("L", (WIDTH, 2 * MARGIN + LINE * len(wrapped)), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(SIZE)
    for number, line in enumerate(wrapped):
        pen.text((MARGIN, MARGIN + number * LINE), line, fill=INK, font=font)
    return np.asarray(picture, dtype=np.uint8)
