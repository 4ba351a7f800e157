"""What a run of de-identification did, warns of and did not do; names no patient and no original file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset

from hscc_edge.data.deidentify.codes import CODE_TEXT
from hscc_edge.data.deidentify.profile import EDITION, NOT_DONE, Profile
from hscc_edge.data.deidentify.values import DUMMY

TEXT = frozenset(["CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT"])
OURS = frozenset(["PatientID", "DeidentificationMethod", "LongitudinalTemporalInformationModified", *CODE_TEXT])
MANY = 1000


@dataclass(frozen=True, slots=True)
class Report:
    """Counts over all files; filled while they are written.

    Attributes:
        rules: how often each rule was used, by its name.
        warnings: why pixels may identify -> files.
        to_look_at: files with signs of burnt-in text; the others may have some too.
        left_out: why a file is not among the results -> files.
        kept_text: keyword of a text attribute that was kept -> its distinct values, hashed.
    """

    profile: Profile
    files: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    to_look_at: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    kept_text: dict[str, set[int]] = field(default_factory=dict)

    def note_text(self, result: Dataset) -> None:
        """Count the text that a de-identified data set still holds: what has many values deserves a look."""
        for element in result.iterall():
            if element.VR in TEXT and element.keyword not in OURS and element.value not in ("", None, DUMMY):
                seen = self.kept_text.setdefault(element.keyword or "private", set())
                if len(seen) < MANY:
                    seen.add(hash(str(element.value)))

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "profile": f"PS3.15 {EDITION} Annex E, Basic Application Level Confidentiality Profile",
            "options": [{"code": code, "meaning": meaning} for code, meaning in self.profile.codes[1:]],
            "files": dict(self.files),
            "rules": dict(sorted(self.rules.items())),
            "warnings": dict(sorted(self.warnings.items())),
            "to_look_at": self.to_look_at,
            "left_out": dict(sorted(self.left_out.items())),
            "kept_text_values": {name: len(seen) for name, seen in sorted(self.kept_text.items())},
            "not_done": NOT_DONE,
        }
