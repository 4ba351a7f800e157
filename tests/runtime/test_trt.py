"""What can be seen of the TensorRT runtime without a GPU: its arithmetic and what it says. Inference: not run."""

import ctypes
import sys

import numpy as np
import pytest

from hscc_edge.errors import EngineError
from hscc_edge.runtime import nvidia, trt


def test_without_tensorrt_one_sentence_says_where_it_comes_from(monkeypatch):
    for name in nvidia.PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=r"JetPack 6\.1 or later, .* pip install tensorrt-rtx-cu13"):
        nvidia.load_tensorrt()


def test_a_cuda_error_becomes_ours():
    from cuda.bindings import runtime as cudart

    error = cudart.cudaError_t
    assert nvidia.checked(cudart, (error.cudaSuccess, 7)) == 7
    assert nvidia.checked(cudart, (error.cudaSuccess,)) is None
    with pytest.raises(EngineError, match=r"no memory left \(cudaErrorMemoryAllocation\): .* smaller --max-batch"):
        nvidia.checked(cudart, (error.cudaErrorMemoryAllocation, None))
    with pytest.raises(EngineError, match=r"CUDA failed \(cudaErrorLaunchFailure\): restart"):
        nvidia.checked(cudart, (error.cudaErrorLaunchFailure, None))


@pytest.mark.parametrize(
    ("least", "largest", "sizes"),
    [(1, 1, (1,)), (1, 2, (1, 2)), (1, 6, (1, 2, 4, 6)), (1, 8, (1, 2, 4, 8)), (8, 8, (8,)), (4, 6, (4, 6))],
)
def test_batches_are_padded_to_few_sizes(least, largest, sizes):
    assert trt.batch_sizes(least, largest) == sizes
    for batch in range(1, largest + 1):
        assert next(size for size in sizes if size >= batch) >= least


def test_pinned_memory_is_read_and_written_in_place():
    memory = (ctypes.c_float * 24)()
    array = trt.floats_at(ctypes.addressof(memory), (2, 3, 4))
    array[:] = np.arange(24).reshape(2, 3, 4)
    assert array.dtype == np.float32 and list(memory) == list(range(24))
    assert array[:1].ctypes.data == ctypes.addressof(memory)
