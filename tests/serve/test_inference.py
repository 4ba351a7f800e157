"""A network in a process of its own: real crashes, hangs and memory limits cost a batch and nothing else."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from hscc_edge.bundle import read_bundle
from hscc_edge.errors import EngineError
from hscc_edge.runtime import open_runtime
from hscc_edge.runtime.startup import Started, timed_open
from hscc_edge.serve.worker.inference import Confines, Inference, InferenceFailed, InferenceUnavailable

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
CRASH, HANG, GREEDY, REFUSED = 7e7, 6e7, 5e7, 4e7


class Marked:
    """A real runtime that does to itself what an image's first pixel says."""

    def __init__(self, runtime) -> None:
        self._runtime, self.name = runtime, runtime.name

    def infer(self, images: np.ndarray) -> np.ndarray:
        for mark in images[:, 0, 0, 0]:
            if mark == CRASH:
                os.kill(os.getpid(), signal.SIGSEGV)
            elif mark == HANG:
                time.sleep(3600)
            elif mark == GREEDY:
                np.ones(1 << 30)
            elif mark == REFUSED:
                raise EngineError("the engine said no")
        return self._runtime.infer(images)

    def close(self) -> None:
        self._runtime.close()


@pytest.fixture
def bundle(dense):
    return read_bundle(dense)


def of(bundle, **options) -> Inference:
    def opening() -> Started:
        started = timed_open(bundle)
        return Started(Marked(started.runtime), started.load_s, started.first_inference_ms, started.warm_inference_ms)

    return Inference(opening, bundle.spec.input_shape, **options)


def images(bundle, *marks: float) -> np.ndarray:
    found = np.random.default_rng(0).random((len(marks), *bundle.spec.input_shape), dtype=np.float32)
    for image, mark in zip(found, marks, strict=True):
        image[0, 0, 0] = mark
    return found


def test_the_logits_are_the_runtimes_own_to_the_bit(bundle):
    inference, asked = of(bundle, batch=3), images(bundle, 0, 0.5, 1)
    runtime = open_runtime(bundle)
    try:
        assert np.array_equal(inference.infer(asked), runtime.infer(asked))
        assert np.array_equal(inference.infer(asked[:1]), runtime.infer(asked[:1]))
        assert inference.started["runtime"].startswith("onnxruntime")
    finally:
        inference.close()
        runtime.close()


@pytest.mark.parametrize(
    ("mark", "confines", "words"),
    [
        (CRASH, Confines(), f"died (signal {signal.SIGSEGV.value})"),
        (HANG, Confines(seconds=0.3), "took too long"),
        (GREEDY, Confines(memory_mib=512), "ran out of memory"),
        (REFUSED, Confines(), "the engine said no"),
    ],
)
def test_what_goes_wrong_is_told_and_the_next_batch_is_fine(bundle, mark, confines, words):
    inference = of(bundle, batch=2, confines=confines)
    try:
        with pytest.raises(InferenceFailed) as caught:
            inference.infer(images(bundle, 0, mark))
        assert words in str(caught.value)
        assert np.isfinite(inference.infer(images(bundle, 0))).all()
    finally:
        inference.close()


def test_waiting_beats(bundle):
    beats = []
    inference = of(bundle, beat=lambda: beats.append(1))
    inference.infer(images(bundle, 0))
    inference.close()
    assert len(beats) >= 2


def test_a_runtime_that_does_not_open_is_no_fault_of_a_batch(bundle):
    def opening() -> Started:
        raise EngineError("there is no GPU")

    inference = Inference(opening, bundle.spec.input_shape)
    with pytest.raises(InferenceUnavailable, match="there is no GPU"):
        inference.infer(images(bundle, 0))
    inference.close()


def test_the_process_holds_no_handle_of_its_parents(bundle, tmp_path):
    with (tmp_path / "lock").open("w") as lock:
        inference = of(bundle)
        inference.start()
        child = inference.pid
        assert Path(f"/proc/{child}/comm").read_text() == "hscc-inference\n"
        held = {os.readlink(f"/proc/{child}/fd/{name}") for name in os.listdir(f"/proc/{child}/fd") if int(name) > 2}
        assert str(tmp_path / "lock") not in held and lock.fileno() > 2
        assert sum(name.startswith("pipe:") for name in held) >= 2
        inference.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
