"""A bounded part of the hostile files of benchmarks/mutations.py: each is read or refused in one sentence."""

import io
import json
import logging
import subprocess
import sys
from collections import Counter

import fuzz_dicom
import mutations
import numpy as np
import pydicom
import pytest
from encoders import WHEEL, dataset, in_memory
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from hscc_edge.data.contained import ContainedReader, Containment
from hscc_edge.data.dicom import read_headers, read_image
from hscc_edge.errors import DicomError

FILES = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def corpus(folder):
    return mutations.corpus(folder)


def test_the_same_seed_gives_the_same_files(corpus):
    first, again = (list(mutations.mutants(corpus, 40, seed=3)) for _ in range(2))
    assert first == again and first != list(mutations.mutants(corpus, 40, seed=4))
    plain = {content for _, content in corpus}
    assert sum(content not in plain for _, content in first) > 30


@pytest.mark.usefixtures("corpus")
def test_hostile_files_are_read_or_refused(folder):
    """In a child with 2 GiB over what it has, as benchmarks/fuzz_dicom.py runs it; a crash would end it early."""
    done = subprocess.run(
        [sys.executable, fuzz_dicom.__file__, "--files", str(FILES), "--corpus", str(folder), "--child-from", "0"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == FILES, done.stderr[-2000:]
    bad = [result for result in results if result["verdict"] not in ("read", "refused")]
    assert not bad
    counts = Counter(result["verdict"] for result in results)
    assert counts["read"] > 30 and counts["refused"] > 100
    assert max(result["rss_mib"] for result in results) < 600


def test_hostile_files_through_a_contained_reader(tmp_path, corpus):
    path, read = tmp_path / "mutant.dcm", 0
    with ContainedReader(Containment(20, 1024), limits=fuzz_dicom.LIMITS) as reader:
        for _, content in mutations.mutants(corpus, 100, seed=1):
            path.write_bytes(content)
            try:
                read += reader.image(path, 0).pixels.size > 0
            except DicomError as error:
                assert len(str(error).splitlines()) == 1 and "its decoder" not in str(error)
    assert 10 < read < 90


def test_a_panic_in_rust_is_refused():
    """pylibjpeg-rle panics where a segment ends within a run; the panic is no `Exception`."""
    stored = dataset("16 bit")
    stored.compress(RLELossless, generate_instance_uid=False)
    frame = bytearray(next(pydicom.encaps.generate_frames(stored.PixelData, number_of_frames=1)))
    refused = 0
    logging.disable(logging.CRITICAL)
    try:
        for seed in range(60):
            chance = np.random.default_rng(seed)
            broken = bytearray(frame)
            for _ in range(20):
                broken[chance.integers(64, len(broken))] = chance.integers(256)
            stored.PixelData = encapsulate([bytes(broken[: chance.integers(100, len(broken))])])
            try:
                read_image(in_memory(stored))
            except DicomError:
                refused += 1
    finally:
        logging.disable(logging.NOTSET)
    assert refused > 30


@pytest.mark.parametrize("length", [2, 6])
def test_a_file_meta_of_a_wrong_length_is_refused(length):
    content = bytearray((WHEEL / "MR_small.dcm").read_bytes())
    content[138] = length  # of (0002,0000), PS3.10 section 7.1
    with pytest.raises(DicomError):
        read_headers(io.BytesIO(bytes(content)))


def test_deep_nesting_is_refused_or_read():
    item = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    content = (WHEEL / "MR_small.dcm").read_bytes()
    at = content.rfind(b"\xe0\x7f\x10\x00")
    with pytest.raises(DicomError, match=r"damaged \(RecursionError"):
        read_image(io.BytesIO(content[:at] + item * 5000 + content[at:]))


def test_deflating_after_gdcm_is_loaded_keeps_the_heap_whole():
    """GDCM's wheel holds a zlib of its own; libz loaded after it called that one's functions and freed memory twice."""
    code = (
        "import hscc_edge.data.jpeg12, zlib, os\n"
        "for _ in range(20):\n"
        "    c = zlib.compressobj(wbits=-15)\n"
        "    packed = c.compress(bytes(7000) + os.urandom(500)) + c.flush()\n"
        "    assert len(zlib.decompress(packed, -15)) == 7500\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
