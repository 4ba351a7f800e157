"""What can be seen of the TensorRT runtime without a GPU: where it looks, and what it says."""

import sys

import pytest

from hscc_edge.errors import EngineError
from hscc_edge.runtime import trt


def test_without_tensorrt_one_sentence_says_where_it_comes_from(monkeypatch):
    for name in trt.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=r"JetPack 6\.1 or later, .* pip install tensorrt-rtx-cu13"):
        trt.load_tensorrt()


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert trt.cache_directory() == tmp_path / "hscc_edge" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert trt.cache_directory() == tmp_path / "home" / ".cache" / "hscc_edge" / "engines"


@pytest.mark.parametrize(
    ("device", "gpu", "runs"),
    [
        ("Orin SM87", "Orin SM87", True),
        ("Orin SM87", "another SM99", False),
        ("SM86+SM89", "some card SM89", True),
        ("SM86+SM89", "some card SM8", False),
        ("SM86", None, True),
    ],
)
def test_which_engines_run_where(device, gpu, runs):
    assert trt._runs_on(device, gpu) is runs


def test_a_cuda_error_becomes_ours():
    from cuda.bindings import runtime as cudart

    assert trt._checked(cudart, (cudart.cudaError_t.cudaSuccess, 7)) == 7
    assert trt._checked(cudart, (cudart.cudaError_t.cudaSuccess,)) is None
    with pytest.raises(EngineError, match=r"CUDA failed \(cudaErrorMemoryAllocation\)"):
        trt._checked(cudart, (cudart.cudaError_t.cudaErrorMemoryAllocation, None))
