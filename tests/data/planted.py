"""A data set with a sentinel of its own in every attribute that can hold one, and the bytes of each to look for."""

from __future__ import annotations

import datetime
import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from pydicom import DataElement, Dataset
from pydicom.datadict import DicomDictionary, RepeatersDictionary
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, MRImageStorage

from hscc_edge.data.deidentify.codes import CODE_TEXT
from hscc_edge.data.deidentify.lists import BULK, GONE, KEPT_UIDS, TECHNICAL
from hscc_edge.data.deidentify.profile import attribute_rules

TEXT = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT")
# Attributes beyond the table that are kept by design: numbers, coded strings, the lists of deidentify_lists.py, codes,
# and what says how the file is to be read
EVERY = (*TEXT, "CS", "AS", "DA", "DT", "TM", "UI", "UR", "DS", "IS", "FD", "FL", "UL", "SL", "UV", "SV", "OB", "OD",
         "OF", "OL", "OV", "OW", "UN")  # fmt: skip
OTHERS = (*TEXT, "DA", "DT", "TM", "UI", "UR", "OB", "OD", "OF", "OL", "OV", "OW")
LEAVE = {*BULK, *GONE, *KEPT_UIDS, *TECHNICAL, *CODE_TEXT}
# attributes of the table that pydicom's dictionary does not know yet
NEWER = {"GenderIdentityComment": (0x00100045, "LT"), "NameToUse": (0x00100012, "LT"), "DisplayURI": (0x0040E012, "UR"),
         "AnnotationDateTime": (0x0040B034, "DT"), "PersonNamesToUse": (0x00100011, "SQ")}  # fmt: skip

ITEM = ((0x00080014, "UI"), (0x00080080, "LO"), (0x00081155, "UI"), (0x00100010, "PN"), (0x00080106, "DT"),
        (0x00400244, "DA"), (0x0040A160, "UT"), (0x0040A123, "PN"), (0x00700006, "ST"))  # fmt: skip


@dataclass
class Garden:
    """Hands out sentinels; `planted` has where each stands, and its bytes."""

    planted: dict[str, bytes] = field(default_factory=dict)
    number: int = 0

    def value(self, vr: str, place: str) -> object:
        """A value of `vr` that stands nowhere else."""
        self.number += 1
        number = self.number
        day = f"{datetime.date(1931, 1, 1) + datetime.timedelta(days=2 * number):%Y%m%d}"
        match vr:
            case "DA" | "DT":
                value, seen = (day if vr == "DA" else f"{day}1122{number % 60:02d}.5{number:05d}"), day.encode()
            case "TM":
                value = f"1347{number % 60:02d}.6{number:05d}"
                seen = value.encode()
            case "UI":
                value = f"1.3.6.1.4.1.55555.7{number:05d}.3"
                seen = value.encode()
            case "UR":
                value = f"http://zq{number:05d}xv.example"
                seen = value.encode()
            case "DS" | "IS":
                value = f"87{number:05d}1"
                seen = value.encode()
            case "AS":
                value = f"{300 + number % 600:03d}W"
                seen = value.encode()
            case "FD" | "FL":
                seen = struct.pack("<d" if vr == "FD" else "<f", 7e5 + number + 0.625)
                value = struct.unpack("<d" if vr == "FD" else "<f", seen)[0]
            case "UL" | "SL" | "UV" | "SV":
                value = 0x5A51_0000 + number if vr in ("UL", "SL") else 0x5A51_5856_0000_0000 + number
                seen = value.to_bytes(4 if vr in ("UL", "SL") else 8, "little")
            case "OB" | "OD" | "OF" | "OL" | "OV" | "OW" | "UN":
                value = seen = b"ZQB%05d" % number
            case _:
                value = f"ZQ{number:05d}XV"
                seen = value.encode()
        self.planted[f"{place} {vr}"] = seen
        return value

    def plant(self, dataset: Dataset, tag: int, vr: str, place: str) -> None:
        """Put a sentinel into an attribute; a sequence gets an item full of them."""
        if vr == "SQ":
            rule = attribute_rules().get(f"{tag:08X}")
            full = (rule is not None and rule.basic != "X") or self.number % 40 == 0
            item = self.item(f"{place}[0]", 1) if full else self.small_item(f"{place}[0]")
            dataset.add(DataElement(tag, "SQ", Sequence([item])))
        else:
            dataset.add(DataElement(tag, vr, self.value(vr, place)))

    def small_item(self, place: str) -> Dataset:
        """An item with a name, a UID, free text and a date."""
        item = Dataset()
        for tag, vr in ((0x00081155, "UI"), (0x00080080, "LO"), (0x00700006, "ST"), (0x0040A121, "DA")):
            self.plant(item, tag, vr, f"{place}.{tag:08X}")
        return item

    def item(self, place: str, depth: int) -> Dataset:
        """An item with sentinels that the table names, that it does not name, that are private, and nested ones."""
        item = Dataset()
        for tag, vr in ITEM:
            self.plant(item, tag, vr, f"{place}.{tag:08X}")
        self.private(item, place)
        if depth < 3:
            nested = self.item(f"{place}.nested", depth + 1)
            item.add(DataElement(0x00082112, "SQ", Sequence([nested])))
            code = Dataset()
            code.CodeValue, code.CodeMeaning = self.value("SH", f"{place}.code"), self.value("LO", f"{place}.code")
            code.CodingSchemeDesignator = self.value("SH", f"{place}.scheme")
            item.ViewCodeSequence = Sequence([code])
            public = Dataset()
            public.CodeValue, public.CodingSchemeDesignator = "12738006", "SCT"
            public.CodeMeaning = self.value("LO", f"{place}.meaning")
            item.AnatomicRegionSequence = Sequence([public])
        return item

    def private(self, dataset: Dataset, place: str) -> None:
        """Private attributes of every value representation."""
        block = dataset.private_block(0x0029, f"ZQCREATOR {self.number}", create=True)
        self.planted[f"{place} creator {self.number}"] = f"ZQCREATOR {self.number}".encode()
        for element, vr in enumerate(EVERY, start=1):
            block.add_new(element, vr, self.value(vr, f"{place}.private"))


def attributes(share: float, seed: int) -> Iterator[tuple[int, str, str]]:
    """(tag, VR, place) of every attribute that the table names, and of a random share of the others."""
    generator = random.Random(seed)
    for tag, (vrs, _, _, _, keyword) in sorted(DicomDictionary.items()):
        vr = vrs.split(" or ")[-1] if vrs.startswith("OB") else vrs.split(" or ")[0]
        if tag >> 16 in (0x0000, 0x0002) or keyword in LEAVE or tag in (0x00080016, 0x00080018):
            continue
        named = f"{tag:08X}" in attribute_rules()
        if (named and vr in (*EVERY, "SQ")) or (vr in (*OTHERS, "SQ") and generator.random() < share):
            yield tag, vr, keyword or f"{tag:08X}"


def planted_dataset(syntax: UID, *, share: float = 0.5, seed: int = 0) -> tuple[Dataset, dict[str, bytes]]:
    """An MR image full of sentinels, and what is to be looked for: place -> bytes."""
    garden, dataset = Garden(), Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    for keyword in ("SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ReceivingApplicationEntityTitle"):
        setattr(dataset.file_meta, keyword, garden.value("AE", keyword))
    dataset.file_meta.PrivateInformationCreatorUID = garden.value("UI", "meta")
    dataset.file_meta.PrivateInformation = garden.value("OB", "meta")
    dataset.file_meta.ImplementationVersionName = garden.value("SH", "meta")
    dataset.preamble = b"ZQPREAMBLE" + b"\0" * 118
    garden.planted["preamble"] = b"ZQPREAMBLE"
    for tag, vr, place in attributes(share, seed):
        garden.plant(dataset, tag, vr, place)
    for tag, vr in NEWER.values():
        garden.plant(dataset, tag, vr, f"{tag:08X}")
    for mask, (vrs, _, _, _, keyword) in RepeatersDictionary.items():
        vr = vrs.split(" or ")[-1]
        if mask[:2] in ("50", "60") and vr in EVERY:
            for group in ("00", "1E"):
                garden.plant(dataset, int(mask.replace("xx", group, 1), 16), vr, keyword)
    garden.private(dataset, "top")
    dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, garden.value("UI", "SOPInstanceUID")
    dataset.SpecificCharacterSet, dataset.PatientIdentityRemoved = "ISO_IR 100", "NO"
    dataset.Rows = dataset.Columns = 4
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.add(DataElement(0x7FE00010, "OW", b"\1\0" * 16 + b"ZQTRAILING"))
    garden.planted["behind the pixels"] = b"ZQTRAILING"
    return dataset, garden.planted
