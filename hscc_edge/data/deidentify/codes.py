"""Coded entries (PS3.3 8.8): public codes keep their dictionary's meaning, a site's own become dummies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

from pydicom import Dataset
from pydicom.sr.codedict import codes

from hscc_edge.data.deidentify.values import DUMMY

CODE_VALUES = ("CodeValue", "LongCodeValue", "URNCodeValue")
CODE_TEXT = (*CODE_VALUES, "CodeMeaning", "CodingSchemeDesignator", "CodingSchemeVersion")
LOCAL = "99DEID"
# how codes look in public schemes (PS3.16 8), for those that pydicom's copy of PS3.16 does not list
SHAPES = {
    "SCT": r"\d{6,9}", "SRT": r"[A-Z]\d?-[0-9A-F]{4,5}", "SNM3": r"[A-Z]\d?-[0-9A-F]{4,5}", "DCM": r"\d{6}",
    "LN": r"\d{1,6}-\d", "I10": r"[A-Z]\d\w(\.\w{1,3})?", "I10P": r"[0-9A-Z]{7}", "RADLEX": r"RID\d{1,5}",
    "RPID": r"RPID\d{1,5}", "FMA": r"\d{4,6}", "UMLS": r"C\d{7}", "NCIt": r"C\d{4,6}", "C4": r"\d{5}",
}  # fmt: skip


@cache
def meanings() -> Mapping[tuple[str, str], str]:
    """Coding scheme and code value -> meaning, of every concept that PS3.16 names (pydicom's copy)."""
    return {
        (concept.scheme_designator, concept.value): concept.meaning
        for scheme in codes.schemes()
        for concept in getattr(codes, scheme).concepts.values()
    }


def is_code(item: Dataset) -> bool:
    """Whether an item of a sequence is a coded entry."""
    return any(keyword in item for keyword in CODE_VALUES)


def code_text(item: Dataset, *, dummy: bool = False) -> dict[str, str]:
    """The code value, meaning and scheme that a coded entry keeps, by keyword.

    A meaning is the dictionary's, never the file's: the file's is free text. What is neither in the dictionary nor of a
    public scheme's shape becomes a dummy code of the scheme 99DEID.

    Args:
        dummy: codes that only look public become dummies too.
    """
    scheme, value = (str(item.get(keyword) or "").strip() for keyword in ("CodingSchemeDesignator", "CodeValue"))
    known = meanings().get((scheme, value))
    if known is None and (dummy or not (scheme in SHAPES and re.fullmatch(SHAPES[scheme], value))):
        return {"CodeValue": DUMMY, "CodingSchemeDesignator": LOCAL, "CodeMeaning": DUMMY}
    return {"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": (known or "meaning not kept")[:64]}
