"""De-identification of a data set by PS3.15 Annex E: what the standard's table names, and what nobody vouches for.

The table names what is known to identify. Beyond it, free text, dates, bulk data and attributes that the dictionary
does not hold are not kept either, unless they stand on the short lists of `deidentify_lists.py`; numbers and coded
strings are. Pixels are kept: burnt-in text is neither found reliably nor removed (`deidentify_burned.py` points at
likely places).
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pydicom import DataElement, Dataset
from pydicom.datadict import dictionary_has_tag, dictionary_VR, repeater_has_tag
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from hscc_edge import __version__
from hscc_edge.data.deidentify.codes import CODE_TEXT, code_text, is_code
from hscc_edge.data.deidentify.echo import identity_pattern, is_echo
from hscc_edge.data.deidentify.frames import clean_pixel_data
from hscc_edge.data.deidentify.lists import (
    BINARY,
    BULK,
    GONE,
    KEPT_UIDS,
    MALFORMED,
    NUMBERS,
    SHAPES,
    STRUCTURED,
    TECHNICAL,
)
from hscc_edge.data.deidentify.profile import EDITION, TEMPORAL, Profile, Rule, content_rules, rule_of
from hscc_edge.data.deidentify.values import DUMMIES, DUMMY, Keyed, is_registered_uid, known_words, shifted
from hscc_edge.errors import DicomError

# with a hundred-year-old, whoever knows one knows who
OLDEST = "090Y"
UID = re.compile(r"[0-9.]+")
LENGTHS = {"LO": 64, "SH": 16}  # PS3.5 6.2


def deidentify_dataset(
    dataset: Dataset, profile: Profile, key: bytes, *, patient: str = "", counts: Counter[str] | None = None
) -> Dataset:
    """A de-identified copy of a data set, with a new file meta header and an empty preamble.

    Pixel data are shared with the original where they need no change. Cost grows with the number of elements, not with
    pixels, but that embedded comments and unused bits of these are looked at once.

    Args:
        key: of the replacements, 32 bytes or more; the same key gives the same UIDs, pseudonyms and shifts.
        patient: identity of the patient where the data set has no Patient ID; otherwise its study stands for it.
        counts: how often each rule was used, added to.

    Raises:
        DicomError: if the data set says that it is de-identified already, or lacks what makes it a file.
    """
    if is_deidentified(dataset):
        raise DicomError(
            "the data set says Patient Identity Removed YES: expected an original; de-identifying twice would map its "
            "UIDs anew, so leave it as it is or start from the original"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on malformed values, quote these
        _check(dataset)
        try:
            return _deidentified(dataset, profile, Keyed(key), patient, Counter() if counts is None else counts)
        except MALFORMED as error:
            raise DicomError(f"the data set is malformed ({type(error).__name__}): leave it out") from error


def _check(dataset: Dataset) -> None:
    """See that a data set has the UIDs without which no file can be written (PS3.10 7.1)."""
    try:
        held = [dataset.file_meta.TransferSyntaxUID, dataset.SOPClassUID, dataset.SOPInstanceUID]
    except MALFORMED:
        held = [""]
    if not all(isinstance(uid, str) and uid for uid in held):
        raise DicomError(
            "the data set lacks a transfer syntax, a SOP class or a SOP instance UID: expected what a file must have "
            "(PS3.10 7.1); leave it out"
        )


def _deidentified(dataset: Dataset, profile: Profile, keyed: Keyed, patient: str, counts: Counter[str]) -> Dataset:
    identity = str(dataset.get("PatientID") or "").strip() or patient or str(dataset.get("StudyInstanceUID") or "")
    days = keyed.shift_days(identity, profile.max_shift_days)
    result = _Walk(profile, keyed, days, identity_pattern(dataset), counts).cleaned(dataset)
    clean_pixel_data(dataset, result, counts)
    _state(result, profile, keyed.patient(identity))
    _set_file_meta(dataset, result)
    return result


def is_deidentified(dataset: Dataset) -> bool:
    """Whether a data set says that its patient's identity is removed (PS3.3 C.7.1.1)."""
    try:
        return str(dataset.get("PatientIdentityRemoved") or "").strip() == "YES"
    except MALFORMED:
        return False


def _state(result: Dataset, profile: Profile, name: str) -> None:
    """Who the patient is now, and what was done (PS3.3 C.7.1.1, C.12.1)."""
    result.PatientID, result.PatientName = name, f"{DUMMY}^{name}"
    result.PatientIdentityRemoved = "YES"
    result.DeidentificationMethod = [f"hscc-edge {__version__}", f"PS3.15 {EDITION} Annex E, options in codes"]
    result.DeidentificationMethodCodeSequence = [_code(value, meaning) for value, meaning in profile.codes]
    result.LongitudinalTemporalInformationModified = {"remove": "REMOVED", "shift": "MODIFIED", "keep": "UNMODIFIED"}[
        profile.dates
    ]


def _code(value: str, meaning: str, scheme: str = "DCM") -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _set_file_meta(dataset: Dataset, result: Dataset) -> None:
    """Only the transfer syntax outlives the old header: it can name applications, and hold private information."""
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    result.file_meta.MediaStorageSOPClassUID = result.SOPClassUID
    result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    result.preamble = b"\0" * 128


@dataclass(frozen=True, slots=True)
class _Walk:
    """One pass over a data set and what is nested in it.

    Attributes:
        days: by which the patient's dates move back.
        identity: matches the patient's own names and numbers.
        counts: how often each rule was used.
    """

    profile: Profile
    keyed: Keyed
    days: int
    identity: re.Pattern[str] | None = field(repr=False)
    counts: Counter[str]

    def cleaned(self, dataset: Dataset, *, dummy: bool = False, verbatim: bool = False) -> Dataset:
        """A copy in which every element has had its rule.

        Args:
            dummy: what is kept by no rule of its own becomes a dummy too: the table says D of the sequence.
            verbatim: codes stay as they are: an option keeps the sequence.
        """
        result = Dataset()
        coded = is_code(dataset) and not verbatim
        for tag in sorted(dataset.keys()):
            try:
                element = dataset[tag]
            except MALFORMED:
                self.counts["unreadable"] += 1
                continue
            if not (coded and element.keyword in CODE_TEXT):
                self._place(dataset, element, result, dummy, verbatim)
        if coded:
            for keyword, text in code_text(dataset, dummy=dummy).items():
                setattr(result, keyword, text)
        return result

    def _place(self, dataset: Dataset, element: DataElement, result: Dataset, dummy: bool, verbatim: bool) -> None:
        found, name = self._ruled(dataset, element, dummy, verbatim)
        if found is not None and is_echo(found, self.identity):
            found, name = _with(found, ""), "identifier met again"
        self.counts["malformed removed" if found is None and name.startswith("K ") else name] += 1
        if found is None:
            return
        result.add(found)
        if element.tag.is_private:
            creator = element.tag.group << 16 | element.tag.elem >> 8
            result.add(dataset[creator])

    def _ruled(
        self, dataset: Dataset, element: DataElement, dummy: bool, verbatim: bool
    ) -> tuple[DataElement | None, str]:
        """What becomes of an element, None if nothing, and the name under which that is counted."""
        tag = element.tag
        if tag.group in (0x0000, 0x0002) or tag.elem == 0x0000 or element.keyword in GONE:
            return None, "bookkeeping removed"
        if tag.group & 0xFF01 in (0x5000, 0x6000):
            return None, "curve or overlay removed"
        if tag.is_private:
            safe = self._is_safe(dataset, tag)
            return (self._kept(element, dummy, verbatim), "private kept") if safe else (None, "private removed")
        if verbatim and element.keyword in CODE_TEXT:
            return element, "code kept"
        rule = rule_of(tag)
        if not _is_as_the_dictionary_says(element):
            return None, "unknown attribute or representation removed"
        action = self.profile.action(rule, element.VR) if rule else self._default(element, dummy)
        return self._done(
            action, element, rule, dummy, verbatim
        ), f"{action} {'of the table' if rule else 'by default'}"

    def _is_safe(self, dataset: Dataset, tag: BaseTag) -> bool:
        creator = dataset.get(tag.group << 16 | tag.elem >> 8)
        return creator is not None and self.profile.is_safe_private(str(creator.value), tag)

    def _default(self, element: DataElement, dummy: bool) -> str:
        """The action for an attribute that the table does not name."""
        representations = set(element.VR.split(" or "))
        if element.VR == "SQ" or element.keyword in BULK or element.keyword in KEPT_UIDS:
            return "K"
        if element.VR == "UI":
            return "K" if self.profile.retain_uids else "U"
        if element.VR in SHAPES:
            return "K"
        if representations <= NUMBERS:
            return "D" if dummy and element.VR in ("DS", "IS", "FD") else "K"
        if element.keyword in TECHNICAL:
            return "D" if dummy else "K"
        if element.VR in ("LO", "SH", "UC") or element.keyword == "TextValue":
            return "C" if self.profile.clean_descriptors and not dummy else "D"
        return "X"

    def _done(
        self, action: str, element: DataElement, rule: Rule | None, dummy: bool, verbatim: bool
    ) -> DataElement | None:
        """The element that an action leaves, None if none; compound codes do what is valid for every type of attribute.

        PS3.15 Table E.1-1a lets an empty value be a dummy and asks for what keeps the object valid: so X/Z empties, and
        what may need a value (X/D, Z/D, X/Z/D) gets a dummy.
        """
        basic = rule.basic if rule else "D"
        match action:
            case "X":
                return None
            case "Z" | "X/Z":
                return _with(element, Sequence() if element.VR == "SQ" else "")
            case "D" | "X/D" | "Z/D" | "X/Z/D":
                return self._dummy(element)
            case "U":
                return self._each(element, self._uid)
            case "K" | "X/Z/U*":
                own = action == "K" and rule is not None and element.keyword.endswith("CodeSequence")
                return self._kept(element, dummy, verbatim or own)
            case "shift":
                moved = self._each(element, lambda value: shifted(str(value), element.VR, self.days))
                return moved or self._done(basic, element, rule, dummy, verbatim)
            case _:
                return self._clean(element, dummy) or self._done(basic, element, rule, dummy, verbatim)

    def _dummy(self, element: DataElement) -> DataElement:
        if element.VR == "SQ":
            return self._sequence(element, dummy=True)
        if element.VR == "UI":
            return self._each(element, self._uid) or element
        return _with(element, DUMMIES[element.VR.split(" or ")[0]]) if _values(element) else element

    def _kept(self, element: DataElement, dummy: bool, verbatim: bool) -> DataElement | None:
        if element.VR == "SQ":
            return self._sequence(element, dummy=dummy, verbatim=verbatim)
        if element.keyword == "PatientAge" and re.fullmatch(r"\d{3}Y", str(element.value)):
            return _with(element, min(str(element.value), OLDEST))
        if element.VR in SHAPES and _values(element):
            fitting = [value for value in _values(element) if SHAPES[element.VR].fullmatch(str(value))]
            return _with(element, fitting if len(fitting) > 1 else fitting[0]) if fitting else None
        if element.VR in TEMPORAL:
            return element if all(shifted(str(value), element.VR, 0) for value in _values(element)) else None
        if element.VR == "UI":
            public = not element.tag.is_private
            return self._each(element, lambda uid: uid if public and UID.fullmatch(uid) else self._uid(uid))
        # pydicom gives the text of a DS or IS that is no number
        return None if element.VR in ("DS", "IS") and any(isinstance(v, str) for v in _values(element)) else element

    def _clean(self, element: DataElement, dummy: bool) -> DataElement | None:
        """Values of like meaning that identify nobody (C of Table E.1-1a); None if there are none."""
        if element.VR == "SQ":
            match element.keyword:
                case "GraphicAnnotationSequence":
                    return self._sequence(element, without="TextObjectSequence")
                case keyword if keyword in STRUCTURED:
                    return _with(element, Sequence(filter(None, map(self._content_item, element.value))))
            return self._sequence(element, dummy=dummy)
        if element.VR == "AE":
            return self._each(element, self.keyed.station)
        if element.keyword == "TimezoneOffsetFromUTC":
            return self._each(element, lambda value: value if re.fullmatch(r"[+-]\d{4}", value) else None)
        if element.VR in BINARY or element.VR in NUMBERS:
            return None
        words = (known_words(str(value), self.profile.descriptor_words) for value in _values(element))
        kept = " ".join(filter(None, words))[: LENGTHS.get(element.VR)].strip()
        return _with(element, kept) if kept else None

    def _content_item(self, item: Dataset) -> Dataset | None:
        """A content item by Table E.3.4-1; without a rule, text and names become dummies by their attributes' rules."""
        concept = (item.get("ConceptNameCodeSequence") or [Dataset()])[0]
        kind = str(item.get("ValueType") or "")
        rule = content_rules().get((str(concept.get("CodingSchemeDesignator")), str(concept.get("CodeValue")), kind))
        if rule is None:
            return self.cleaned(item)
        action = self.profile.action(rule, {"DATE": "DA", "DATETIME": "DT", "TIME": "TM"}.get(kind, ""))
        self.counts[f"{action} of a content item"] += 1
        return None if action == "X" else self.cleaned(item, dummy="D" in action)

    def _sequence(
        self, element: DataElement, *, dummy: bool = False, verbatim: bool = False, without: str = ""
    ) -> DataElement:
        items = [self.cleaned(item, dummy=dummy, verbatim=verbatim) for item in element.value]
        for item in items:
            item.pop(without, None) if without else None
        return _with(element, Sequence(items))

    def _each(self, element: DataElement, change: Callable[[str], str | None]) -> DataElement | None:
        """Every value changed; None if one cannot be."""
        values = [change(str(value)) for value in _values(element)]
        if not values:
            return element
        return None if None in values else _with(element, values if len(values) > 1 else values[0])

    def _uid(self, uid: str) -> str:
        return uid if is_registered_uid(uid) else self.keyed.uid(uid)


def _values(element: DataElement) -> list[Any]:
    if element.is_empty:
        return []
    return list(element.value) if element.VM > 1 else [element.value]


def _with(element: DataElement, value: Any) -> DataElement:
    return DataElement(element.tag, element.VR, value)


def _is_as_the_dictionary_says(element: DataElement) -> bool:
    """Whether PS3.6 knows the attribute (or the table does) and its representation; numbers may be of another kind."""
    if not (dictionary_has_tag(element.tag) or repeater_has_tag(element.tag)):
        return rule_of(element.tag) is not None and element.VR != "UN"
    expected = dictionary_VR(element.tag)
    numbers = {*element.VR.split(" or "), *expected.split(" or ")} <= NUMBERS
    return expected == element.VR or element.VR in expected.split(" or ") or numbers
