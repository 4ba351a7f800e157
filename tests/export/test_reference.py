"""The reference set that a device tests itself on before it serves a bundle."""

import dataclasses
import shutil

import numpy as np
import pytest

from hscc_edge.bundle import add_files, read_bundle
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import BundleError, EngineError
from hscc_edge.export.reference import (
    REFERENCE,
    read_reference,
    reference_file,
    reference_inputs,
    self_test,
)
from hscc_edge.runtime import open_runtime

VOLUME = [
    {"name": "percentile", "lower": 1.0, "upper": 99.0},
    {"name": "orient", "axes": "RAS"},
    {"name": "resize", "depth": 8, "height": 16, "width": 16},
    {"name": "normalise", "mean": [0.3], "std": [0.25]},
]


@pytest.fixture(scope="module")
def bundle(dense):
    return read_bundle(dense)


def test_an_exported_bundle_passes_its_own_test(bundle):
    reference, runtime = read_reference(bundle), open_runtime(bundle)
    assert reference.inputs.shape == (4, *bundle.spec.input_shape)
    assert self_test(reference, runtime.infer, "fp32") <= reference.tolerance["fp32"]
    if "models/model.fp16.onnx" in bundle.files:
        other = open_runtime(bundle, precision="fp16")
        assert self_test(reference, other.infer, "fp16") <= reference.tolerance["fp16"]
    runtime.close()


def test_the_inputs_differ_and_are_the_same_at_each_call(bundle):
    steps = parse_preprocess(bundle.spec.preprocess)
    first = reference_inputs(steps)
    assert np.array_equal(first, reference_inputs(steps)) and np.array_equal(first, read_reference(bundle).inputs)
    assert len(np.unique(first.reshape(len(first), -1), axis=0)) == len(first)


def test_volumes_have_a_reference_too():
    assert reference_inputs(parse_preprocess(VOLUME)).shape == (4, 1, 8, 16, 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda logits: logits + np.float32(1e3), "off by 1e"),
        (lambda logits: logits * np.float32(np.nan), "off by nan"),
        (lambda logits: logits[:, :-1], "expected"),
    ],
)
def test_another_output_is_refused(bundle, change, words):
    reference, runtime = read_reference(bundle), open_runtime(bundle)
    with pytest.raises(EngineError, match=words):
        self_test(reference, lambda images: change(runtime.infer(images)), "fp32")
    runtime.close()


def test_a_bundle_without_or_with_anothers_reference_is_told(bundle, tmp_path):
    without = dataclasses.replace(bundle, files={k: v for k, v in bundle.files.items() if k != REFERENCE})
    with pytest.raises(BundleError, match="no reference set for a self-test: run hscc-edge export again"):
        read_reference(without)
    shutil.copytree(bundle.root, tmp_path / "other")
    for content in (b"nothing", reference_file(np.zeros((1, 1, 2, 2), np.float32), {"fp32": np.zeros((1, 4))})):
        other = add_files(read_bundle(tmp_path / "other"), {REFERENCE: content})
        with pytest.raises(BundleError, match="run hscc-edge export again"):
            read_reference(other)
