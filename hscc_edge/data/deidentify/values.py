"""What stands in place of an identifying value: keyed UIDs, pseudonyms and shifts of dates, dummies, known words."""

from __future__ import annotations

import datetime
import hashlib
import re
import uuid
from dataclasses import dataclass, field
from functools import cache

from pydicom._uid_dict import UID_dictionary

from hscc_edge.data.pseudonym import pseudonym

DUMMY = "DEIDENTIFIED"
# of length 1 or more and within what PS3.5 6.2 allows
DUMMIES: dict[str, object] = {
    "AE": DUMMY, "AS": "000D", "CS": DUMMY, "DA": "19000101", "DS": "0", "DT": "19000101", "FD": 0.0, "FL": 0.0,
    "IS": "0", "LO": DUMMY, "LT": DUMMY, "OB": b"\0\0", "OD": b"\0" * 8, "OF": b"\0" * 4, "OL": b"\0" * 4,
    "OV": b"\0" * 8, "OW": b"\0\0", "PN": DUMMY, "SH": DUMMY, "SL": 0, "SS": 0, "ST": DUMMY, "SV": 0, "TM": "000000",
    "UC": DUMMY, "UL": 0, "UN": b"\0\0", "UR": "urn:deidentified", "US": 0, "UT": DUMMY, "UV": 0,
}  # fmt: skip
CODE_SYSTEM = re.compile(r"2\.16\.840\.1\.113883\.6\.\d{1,4}")
DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")
DATETIME = re.compile(r"(\d{8})(\d{0,6}(?:\.\d{1,6})?(?:[+-]\d{4})?)")
TIME = re.compile(r"\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?|\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?")
_WORDS = (
    "abdomen adc angio angiography ankle aorta ap apical arterial axial ax b0 b1000 blade bone brain breast c cardiac "
    "chest cine contrast cor coronal coronary cspine ct cta delayed diffusion dwi dynamic echo elbow epi fat femur "
    "fiesta flair flash foot fov fs fse gd gradient gre hand haste head heart hip kidney knee lateral left legs liver "
    "localizer localiser long low lower lspine lumbar lung map mdixon mip mpr mprage mr mra mri neck nativ native "
    "neuro orbit pa pancreas pd pelvis perfusion phase pituitary planar portal post pre proton prostate pulmonary "
    "recon resp rest right routine sag sagittal scan scout screening se short shoulder skull soft space spair spgr "
    "spin spine spleen stir stress survey swi t1 t1w t2 t2w thin thorax tfe thoracic tir tirm tissue tof topogram tra "
    "trace transverse tse upper us vein venous vibe view wip with without wrist xr 2d 3d"
)
WORDS = frozenset(_WORDS.split())


@dataclass(frozen=True, slots=True)
class Keyed:
    """All that depends on the secret key; equal keys give equal replacements, on any machine.

    Attributes:
        key: 32 bytes or more.
    """

    key: bytes = field(repr=False)

    def _key(self, purpose: str) -> bytes:
        """A key of its own for each purpose, so that no value of one tells anything about another."""
        master = hashlib.blake2b(self.key, person=b"hscc-deidentify").digest()
        return hashlib.blake2b(purpose.encode(), key=master).digest()

    def uid(self, uid: str) -> str:
        """The UID of PS3.5 B.2 (2.25, then a UUID as an integer) that stands for `uid`."""
        digest = hashlib.blake2b(uid.encode(), key=self._key("uid"), digest_size=16).digest()
        return f"2.25.{uuid.UUID(bytes=digest, version=5).int}"

    def patient(self, identity: str) -> str:
        """The pseudonym of a patient."""
        return pseudonym(identity, self._key("patient"))

    def station(self, title: str) -> str:
        """The pseudonym of an application entity, at most 16 characters."""
        return pseudonym(title, self._key("station"))

    def shift_days(self, identity: str, most: int) -> int:
        """By how many days a patient's dates move back: 1 to `most`."""
        digest = hashlib.blake2b(identity.encode(), key=self._key("shift"), digest_size=16).digest()
        return 1 + int.from_bytes(digest, "big") % most


def is_registered_uid(uid: str) -> bool:
    """Whether a UID is one of PS3.6 Annex A or names a public code system, and so says nothing of a patient."""
    return uid in UID_dictionary or CODE_SYSTEM.fullmatch(uid) is not None


def shifted(value: str, vr: str, days: int) -> str | None:
    """A DA or DT value `days` earlier, a TM value as it is; None if it is malformed, a range or before year 1."""
    text = value.strip()
    if vr == "TM":
        return text if TIME.fullmatch(text) else None
    match = (DATE if vr == "DA" else DATETIME).fullmatch(text)
    if match is None:
        return None
    try:
        day = datetime.datetime.strptime("".join(match.groups()) if vr == "DA" else match[1], "%Y%m%d").date()
        moved = day - datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return None
    return f"{moved.year:04d}{moved:%m%d}" + ("" if vr == "DA" else match[2])


def known_words(text: str, further: tuple[str, ...]) -> str:
    """The words of `text` that are on the list of technical words, the rest left out.

    What comes out holds nothing but words of the list, so it needs no recogniser of names.
    """
    allowed = _allowed(further)
    return " ".join(word for word in re.findall(r"[^\W_]+", text) if word.lower() in allowed)


@cache
def _allowed(further: tuple[str, ...]) -> frozenset[str]:
    return WORDS | {word.lower() for word in further}
