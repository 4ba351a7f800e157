"""One contract for every runtime of the registry; one that cannot start here says exactly why, and is not run."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from typer.main import get_command

from hscc_edge.bundle import read_bundle
from hscc_edge.cli import app
from hscc_edge.data.case import stream
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.errors import EngineError, InputError
from hscc_edge.export.builder import require_supported
from hscc_edge.runtime import RUNTIMES, infer_batches, infer_each, open_runtime
from hscc_edge.runtime.nvidia import gpu_name, load_tensorrt
from hscc_edge.runtime.ort import PROVIDERS
from hscc_edge.runtime.startup import timed_open

ABSENT = {
    "ort-cuda": (InputError, r"this onnxruntime [\d.]+ has no CUDAExecutionProvider, only .*CPUExecutionProvider: "),
    "ort-tensorrt": (InputError, r"this onnxruntime [\d.]+ has no TensorrtExecutionProvider, only .*"),
    "trt": (
        EngineError,
        r"TensorRT needs an NVIDIA GPU, and CUDA finds none \(cudaErrorInsufficientDriver\): use --runtime ort, or the "
        r"device$",
    ),
}  # fmt: skip


def builds_here() -> bool:
    """Whether there is a GPU and a TensorRT that runs on it."""
    gpu = gpu_name()
    try:
        require_supported(load_tensorrt(), gpu)
    except EngineError:
        return False
    return gpu is not None


def starts_here(kind: str) -> bool:
    if kind == "trt":
        return builds_here()
    return kind not in ABSENT or PROVIDERS[kind.partition("-")[2]][0] in onnxruntime.get_available_providers()


HERE = [kind for kind in RUNTIMES if starts_here(kind)]


@pytest.fixture(scope="module", autouse=True)
def engines(dense, phantom, tmp_path_factory):
    """On a machine with a GPU, an engine that was built, verified and activated there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        if "trt" in HERE:
            words = ["build", str(dense), "--precision", "fp32", "--cohort", str(phantom.root), "--images", "4"]
            get_command(app).main(words, standalone_mode=False)
        yield


@pytest.fixture(scope="module")
def bundle(dense):
    return read_bundle(dense)


@pytest.fixture(scope="module")
def images(bundle, phantom) -> np.ndarray:
    """(5, 1, 64, 64), preprocessed phantoms."""
    found = stream(phantom.select("val"), parse_preprocess(bundle.spec.preprocess))
    return np.stack([image for _, image in (next(found) for _ in range(5))])


@pytest.fixture(scope="module")
def truth(bundle, images) -> np.ndarray:
    """Logits (5, 4) of torch, one image a call."""
    runtime = open_runtime(bundle, "eager")
    return infer_each(runtime, images)


@pytest.fixture(params=HERE)
def runtime(request, bundle):
    found = open_runtime(bundle, request.param)
    yield found
    found.close()


@pytest.mark.parametrize("kind", [kind for kind in RUNTIMES if kind not in HERE])
def test_a_runtime_that_cannot_start_here_says_why(kind, bundle):
    error, said = ABSENT[kind]
    with pytest.raises(error, match=said):
        open_runtime(bundle, kind)
    pytest.skip(f"the contract was not run for {kind}, which cannot start on this machine; its error is right")


def test_it_gives_the_logits_of_torch(runtime, images, truth):
    assert runtime.name and np.allclose(infer_each(runtime, images), truth, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_batch_gives_what_single_images_give(batch, runtime, images, truth):
    logits = runtime.infer(images[:batch])
    assert logits.shape == (batch, 4) and logits.dtype == np.float32
    assert np.allclose(logits, truth[:batch], atol=1e-4)
    assert np.allclose(infer_batches(runtime, images, batch), truth, atol=1e-4)


def test_an_image_gives_the_same_bits_again(runtime, images):
    first, kept = runtime.infer(images[:1]), runtime.infer(images[:1])
    runtime.infer(images[1:3])
    assert np.array_equal(first, kept), "an earlier answer was written over, or the same image got other bits"
    assert np.array_equal(first, runtime.infer(images[:1]))


def test_the_memory_layout_of_images_does_not_matter(runtime, images):
    turned = np.ascontiguousarray(images[:2].transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    assert not turned.flags.c_contiguous
    assert np.array_equal(runtime.infer(turned), runtime.infer(images[:2]))


@pytest.mark.parametrize("shape", [(1, 1, 64, 63), (1, 3, 64, 64), (1, 64, 64), (64, 64), (1, 1, 1, 64, 64), ()])
def test_another_shape_is_refused(shape, runtime):
    with pytest.raises(InputError, match=r"were given: the model takes \(1, 64, 64\)"):
        runtime.infer(np.zeros(shape, np.float32))


@pytest.mark.parametrize(("count", "kind"), [(0, np.float32), (1, np.float64), (1, np.uint8), (1, np.float16)])
def test_no_image_and_another_type_are_refused(count, kind, runtime):
    with pytest.raises(InputError, match=rf"{count} images of {np.dtype(kind)} were given: expected one or more of"):
        runtime.infer(np.zeros((count, 1, 64, 64), kind))


def test_it_works_on_after_a_refusal(runtime, images, truth):
    with pytest.raises(InputError):
        runtime.infer(images[0])
    assert np.allclose(runtime.infer(images[:1]), truth[:1], atol=1e-4)


def test_threads_share_it_and_get_the_bits_of_one_thread(runtime, images):
    alone = [runtime.infer(images[i : i + 1]) for i in range(len(images))]
    with ThreadPoolExecutor(8) as pool:
        turns = [i % len(images) for i in range(64)]
        together = list(pool.map(lambda i: runtime.infer(images[i : i + 1]), turns))
    assert all(np.array_equal(found, alone[i]) for i, found in zip(turns, together, strict=True))


def test_a_closed_runtime_says_so_and_may_be_closed_twice(runtime, images):
    runtime.infer(images[:1])
    assert runtime.close() is None and runtime.close() is None
    with pytest.raises(EngineError, match=r"the runtime .+ is closed: open it again"):
        runtime.infer(images[:1])


def test_it_may_be_closed_while_others_infer(runtime, images):
    def infer(_: int) -> np.ndarray | str:
        try:
            return runtime.infer(images)
        except EngineError as error:
            return str(error)

    whole = runtime.infer(images)
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(infer, range(40))
        runtime.close()
    for answer in answers:
        assert "is closed" in answer if isinstance(answer, str) else np.array_equal(answer, whole)


@pytest.mark.parametrize("kind", HERE)
def test_the_start_is_timed(kind, bundle):
    started = timed_open(bundle, kind)
    times = {name: value for name, value in started.to_json().items() if name != "runtime"}
    assert set(times) == {"load_s", "first_inference_ms", "warm_inference_ms"} and min(times.values()) > 0
    assert started.to_json()["runtime"] == started.runtime.name
    started.runtime.close()


def test_the_tensorrt_provider_takes_fp32_alone(bundle):
    with pytest.raises(InputError, match=r"ort-tensorrt was asked for fp16: .* use fp32, ort-cuda or trt"):
        open_runtime(bundle, "ort-tensorrt", precision="fp16")
