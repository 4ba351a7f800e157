"""A native decoder that really crashes, hangs, eats memory or lies costs one file, not the process that asked."""

import os
import subprocess
import sys
import time
from pathlib import Path

import encoders
import numpy as np
import pytest
from encoders import WHEEL, dataset
from pydicom import Dataset

from hscc_edge.data.contained import ContainedReader, Containment
from hscc_edge.data.dicom import read_image
from hscc_edge.data.limits import Limits
from hscc_edge.errors import DicomError

READER = '''
import ctypes, os, sys, time
from hscc_edge.data.dicom import read_image

def read(path, frame, *, limits):
    """What a decoder might do, by the file's name."""
    if path.name == "segfault":
        ctypes.string_at(0)
    elif path.name == "abort":
        os.abort()
    elif path.name == "exit":
        os._exit(3)
    elif path.name == "hang":
        while True:
            pass
    elif path.name == "memory":
        return [bytearray(1 << 20) for _ in range(1 << 20)]
    elif path.name == "bug":
        return None
    elif path.name == "lies":
        for fd in range(3, 20):
            try:
                os.write(fd, b"\\xff" * 64)
            except OSError:
                pass
        time.sleep(60)
    elif path.name == "chatter":
        os.write(1, b"libjpeg: warning" * 100)
        print("more", flush=True)
        path = path.with_name("good.dcm")
    elif path.name == "who":
        raise __import__("hscc_edge.errors", fromlist=["x"]).DicomError(str(os.getpid()))
    return read_image(path, frame, limits=limits)
'''


@pytest.fixture
def reader(tmp_path, monkeypatch):
    (tmp_path / "decoder_that_fails.py").write_text(READER)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "good.dcm").write_bytes((WHEEL / "MR_small.dcm").read_bytes())
    with ContainedReader(Containment(seconds=3, memory_mib=512), reader="decoder_that_fails:read") as found:
        yield found


def child_of(reader, folder):
    with pytest.raises(DicomError) as told:
        reader.image(folder / "who")
    return int(str(told.value))


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("segfault", r"its decoder crashed \(SIGSEGV\); leave it out$"),
        ("abort", r"its decoder crashed \(SIGABRT\)"),
        ("exit", "its decoder ended with exit code 3"),
        ("hang", "its decoder took too long and was ended"),
        ("memory", "its decoder took more memory than 512 MiB"),
        ("bug", "its decoder ended with exit code 1"),
        ("lies", "its decoder gave a malformed answer"),
    ],
)
def test_what_goes_wrong_costs_one_file(reader, tmp_path, name, words):
    good = read_image(tmp_path / "good.dcm").pixels
    assert np.array_equal(reader.image(tmp_path / "good.dcm").pixels, good)
    first = child_of(reader, tmp_path)
    with pytest.raises(DicomError, match=words) as told:
        reader.image(tmp_path / name)
    assert len(str(told.value).splitlines()) == 1
    assert np.array_equal(reader.image(tmp_path / "good.dcm").pixels, good)
    if name != "memory":  # its child goes on
        assert child_of(reader, tmp_path) != first and not is_alive(first)


def test_what_a_decoder_prints_is_no_answer(reader, tmp_path):
    assert np.array_equal(reader.image(tmp_path / "chatter").pixels, read_image(tmp_path / "good.dcm").pixels)


def test_one_child_serves_many_files_and_ends_with_the_reader(tmp_path, reader):
    pids = {child_of(reader, tmp_path) for _ in range(5)}
    assert len(pids) == 1
    reader.close()
    assert not is_alive(pids.pop())


def test_a_child_whose_parent_is_gone_ends():
    code = (
        "from pathlib import Path; import sys, os\n"
        "from hscc_edge.data.contained import ContainedReader\n"
        "reader = ContainedReader(); reader.image(Path(sys.argv[1]))\n"
        "print(reader._child.pid, flush=True); os._exit(0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(WHEEL / "MR_small.dcm")], capture_output=True, text=True, check=True
    )
    pid = int(done.stdout)
    for _ in range(100):
        if not is_alive(pid) or "Z" in Path(f"/proc/{pid}/stat").read_text().split():
            return
        time.sleep(0.1)
    raise AssertionError("the child lives on")


def same(first, second):
    return (
        np.array_equal(first.pixels, second.pixels)
        and first.headers == second.headers
        and first.decoder == second.decoder
        and (first.padding is None) == (second.padding is None)
        and (first.padding is None or np.array_equal(first.padding, second.padding))
    )


def test_an_image_is_what_the_direct_reader_gives(tmp_path):
    padded = dataset("16 bit signed")
    padded.add_new("PixelPaddingValue", "SS", int(encoders.picture("16 bit signed").min()))
    padded.WindowCenter, padded.WindowWidth, padded.PhotometricInterpretation = 40, 80.5, "MONOCHROME1"
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4, 2, 16])
    item.add_new("LUTData", "US", [1, 2, 3, 60000])
    padded.VOILUTSequence = [item]
    padded.save_as(tmp_path / "padded.dcm", enforce_file_format=True)
    with ContainedReader() as reader:
        for path in (tmp_path / "padded.dcm", WHEEL / "examples_palette.dcm", WHEEL / "SC_rgb_jpeg_dcmtk.dcm"):
            assert same(reader.image(path), read_image(path))
        assert reader.image(tmp_path / "padded.dcm").padding.any()
        assert same(reader.image(WHEEL / "rtdose.dcm", 7), read_image(WHEEL / "rtdose.dcm", 7))
        image = reader.image(WHEEL / "MR_small.dcm")
        image.pixels[0, 0] = 1  # the caller's own memory


def test_refusals_are_those_of_the_direct_reader(tmp_path):
    with ContainedReader(limits=Limits(samples=5000)) as reader:
        for path, frame in ((WHEEL / "MR_truncated.dcm", None), (WHEEL / "rtdose.dcm", None), (tmp_path / "no", 3)):
            with pytest.raises(DicomError) as direct:
                read_image(path, frame)
            with pytest.raises(DicomError) as contained:
                reader.image(path, frame)
            assert str(direct.value) == str(contained.value)
        with pytest.raises(DicomError, match="expected 1 to 5000 in all"):
            reader.image(WHEEL / "CT_small.dcm")


def test_a_reader_that_does_not_start_says_so():
    words = "its decoder ended with exit code 1"
    with ContainedReader(reader="no.such.module:read") as reader, pytest.raises(DicomError, match=words):
        reader.image(WHEEL / "MR_small.dcm")


def test_only_compressed_pixels_leave_the_process(reader, tmp_path):
    assert np.array_equal(reader.read(tmp_path / "good.dcm").pixels, read_image(WHEEL / "MR_small.dcm").pixels)
    (tmp_path / "segfault").write_bytes((WHEEL / "MR_small.dcm").read_bytes())
    assert reader.read(tmp_path / "segfault").headers.rows == 64
    (tmp_path / "segfault").write_bytes((WHEEL / "MR_small_jp2klossless.dcm").read_bytes())
    with pytest.raises(DicomError, match="crashed"):
        reader.read(tmp_path / "segfault")


def test_a_check_survives_a_decoder_that_crashes(phantom, tmp_path, monkeypatch):
    from dataclasses import replace
    from shutil import copy

    from hscc_edge.data import inspection
    from hscc_edge.data.leakage import check_cohort

    (tmp_path / "decoder_that_fails.py").write_text(READER)
    monkeypatch.syspath_prepend(tmp_path)
    copy(WHEEL / "MR_small_jp2klossless.dcm", tmp_path / "segfault")
    copy(phantom.path(phantom.instances[1]), tmp_path / "whole")
    items = (replace(phantom.instances[0], file="segfault"), replace(phantom.instances[1], file="whole"))
    with ContainedReader(reader="decoder_that_fails:read") as failing:
        monkeypatch.setattr(inspection, "_reader", lambda: failing)
        found = check_cohort(replace(phantom, files=tmp_path, instances=items), near=False, shortcuts=False)
    assert found.unreadable == ("segfault",)
