"""One file of unknown kind: mutated, cut off, enhanced, deflated or lying, it gets its row."""

import copy
import dataclasses
import io
import os
import pickle
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from hscc_edge.data import header, index
from hscc_edge.data.facts import facts_of
from hscc_edge.data.index import FAULT, IMAGE, Index, Row

KEY = b"k" * 32
WHEEL = Path(get_testdata_file("MR_small.dcm", download=False)).parent


def examined(content: bytes, digest: bool = True) -> Row:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        folder, name = os.path.split(file.name)
        (row,) = header.examine(folder, digest, KEY, [Row(name, 0, 0, "")])
    return dataclasses.replace(row, path="file", mtime_ns=0)


def kept(row: Row) -> Row:
    """The row after a process boundary and an index."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        with Index(path) as target:
            target.survey(Path(folder), [row], digest=False, rehash=False)
            target.store([pickle.loads(pickle.dumps(row))])
            target.finish()
        return next(index.rows(path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_mutated_file_raises(data):
    name = data.draw(st.sampled_from(["CT_small.dcm", "MR_small_bigendian.dcm", "liver_1frame.dcm", "image_dfl.dcm",
                                      "MR_small_implicit.dcm", "reportsi.dcm", "UN_sequence.dcm"]))  # fmt: skip
    content = bytearray((WHEEL / name).read_bytes()[: data.draw(st.sampled_from([1 << 12, 1 << 20]))])
    for place in data.draw(st.lists(st.integers(0, min(len(content), 1 << 12) - 1), min_size=1, max_size=12)):
        content[place] = data.draw(st.integers(0, 255))
    row = examined(bytes(content))
    assert dataclasses.replace(row, digest=None) == examined(bytes(content), digest=False)
    assert kept(row) == row and (row.fault is None) == (row.kind != FAULT)


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "CT_small.dcm"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_image_that_was_cut_off_is_a_fault(name, data):
    content = (WHEEL / name).read_bytes()
    pixels = pydicom.dcmread(WHEEL / name).get_item("PixelData")
    whole = pixels.value_tell + pixels.length
    assert examined(content[:whole]).kind == IMAGE
    assert examined(content[: data.draw(st.integers(132, whole - 1))]).kind == FAULT


def written(dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("undefined", [False, True])
def test_of_an_enhanced_object_the_first_frame_alone_is_read(undefined, monkeypatch):
    read = []
    original = header.read_sequence_item
    monkeypatch.setattr(header, "read_sequence_item", lambda *args: read.append(1) or original(*args))
    dataset = pydicom.dcmread(WHEEL / "liver_1frame.dcm")
    frame, *_ = dataset.PerFrameFunctionalGroupsSequence
    dataset.PerFrameFunctionalGroupsSequence = [frame, *(copy.deepcopy(frame) for _ in range(49))]
    dataset["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined
    row = examined(written(dataset))
    assert row.kind == IMAGE and row.facts == facts_of(dataset, KEY) and len(read) == 1


def test_a_deflated_file_of_any_size_costs_no_more_than_its_headers(monkeypatch):
    dataset = pydicom.dcmread(WHEEL / "image_dfl.dcm")
    plain = examined((WHEEL / "image_dfl.dcm").read_bytes())
    assert plain.kind == IMAGE and plain.facts == facts_of(dataset, KEY)
    assert plain.facts.transfer_syntax == DeflatedExplicitVRLittleEndian
    content = (WHEEL / "image_dfl.dcm").read_bytes()
    end = 144 + int.from_bytes(content[140:144], "little")
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(zlib.decompress(content[end:], -15)) + packer.compress(bytes(1 << 26)) + packer.flush()
    monkeypatch.setattr(header, "INFLATED", 1 << 20)
    tracemalloc.start()
    row = examined(content[:end] + bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert row.facts == plain.facts and peak < 1 << 24


def test_a_header_that_lies_about_lengths_takes_no_memory():
    content = (WHEEL / "MR_small_implicit.dcm").read_bytes()
    place = content.index(b"\x10\x00\x20\x00")  # PatientID
    lie = content[: place + 4] + (0xFFFFFF00).to_bytes(4, "little") + content[place + 8 :]
    for digest in (False, True):
        assert examined(lie, digest=digest).kind == FAULT
