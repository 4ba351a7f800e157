"""What ONNX Runtime is given, and how it refuses or fails at what it cannot take."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from hscc_edge.errors import EngineError, ExportError, InputError
from hscc_edge.runtime.ort import PROVIDERS, OrtRuntime, require_provider


def save(path: Path, nodes: list, names: tuple[str, str] = ("image", "logits"), kind: int = TensorProto.FLOAT) -> Path:
    """A graph for images of (1, 2, 2)."""
    ends = [helper.make_tensor_value_info(name, kind, ["batch", 1, 2, 2]) for name in names]
    model = helper.make_model(
        helper.make_graph(nodes, "graph", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    path.write_bytes(model.SerializeToString())
    return path


def relu(path: Path, names: tuple[str, str] = ("image", "logits"), kind: int = TensorProto.FLOAT) -> Path:
    return save(path, [helper.make_node("Relu", [names[0]], [names[1]])], names, kind)


def constant(name: str, values: list[int]):
    value = helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
    return helper.make_node("Constant", [], [name], value=value)


@pytest.mark.parametrize(
    ("names", "kind", "said"),
    [
        (("x", "logits"), TensorProto.FLOAT, "x tensor"),
        (("image", "y"), TensorProto.FLOAT, "y tensor"),
        (("image", "logits"), TensorProto.FLOAT16, r"tensor\(float16\)"),
    ],
)
def test_a_graph_with_other_ends_is_not_opened(names, kind, said, tmp_path):
    with pytest.raises(ExportError, match=f"{said}.*expected image and logits, both float"):
        OrtRuntime(relu(tmp_path / "model.onnx", names, kind))


def test_an_image_of_another_shape_is_one_sentence(tmp_path):
    runtime = OrtRuntime(relu(tmp_path / "model.onnx"))
    assert runtime.infer(np.full((3, 1, 2, 2), -1, np.float32)).max() == 0
    with pytest.raises(InputError, match=r"images of shape \(1, 3, 2\) were given: the model takes \(1, 2, 2\)"):
        runtime.infer(np.zeros((1, 1, 3, 2), np.float32))


def test_memory_that_runs_out_is_told_and_the_runtime_lives(tmp_path):
    """A batch of images that are 0 takes no memory to speak of; with another value, 4 TiB, by ONNX Runtime itself."""
    nodes = [
        constant("shape", [1 << 20, 1 << 20]),
        helper.make_node("ReduceMax", ["image"], ["largest"], keepdims=0),
        helper.make_node("Cast", ["largest"], ["factor"], to=TensorProto.INT64),
        helper.make_node("Mul", ["shape", "factor"], ["wanted"]),
        helper.make_node("ConstantOfShape", ["wanted"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Add", ["image", "sum"], ["logits"]),
    ]
    runtime = OrtRuntime(save(tmp_path / "model.onnx", nodes))
    small, big = np.zeros((1, 1, 2, 2), np.float32), np.ones((1, 1, 2, 2), np.float32)
    assert runtime.infer(small).max() == 0
    with pytest.raises(EngineError, match=r"onnxruntime [\d.]+ CPU has no memory for a batch of 1: free memory"):
        runtime.infer(big)
    assert runtime.infer(small).max() == 0


def test_a_failing_node_is_told_without_its_text(tmp_path):
    nodes = [
        constant("shape", [3, 1, 2, 2]),
        helper.make_node("Reshape", ["image", "shape"], ["logits"], name="secret"),
    ]
    runtime = OrtRuntime(save(tmp_path / "model.onnx", nodes))
    assert runtime.infer(np.zeros((3, 1, 2, 2), np.float32)).shape == (3, 1, 2, 2)
    with pytest.raises(EngineError, match=r"could not run a batch of 2 \(\w+\): export the bundle again") as caught:
        runtime.infer(np.zeros((2, 1, 2, 2), np.float32))
    assert "secret" not in str(caught.value)


def test_providers_are_real_names():
    assert {name for name, _ in PROVIDERS.values()} <= set(onnxruntime.get_all_providers())


def test_an_unknown_provider_is_told(tmp_path):
    with pytest.raises(InputError, match="the provider 'gpu' is unknown: expected one of cpu, cuda, tensorrt"):
        OrtRuntime(relu(tmp_path / "model.onnx"), provider="gpu")


def test_falling_back_to_the_cpu_is_an_error(tmp_path):
    """What ONNX Runtime does when CUDA does not start: it warns, and the session holds the CPU alone."""
    path = relu(tmp_path / "model.onnx")
    with pytest.warns(UserWarning, match="not in available provider names"):
        session = onnxruntime.InferenceSession(str(path), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(EngineError, match="could not start its CUDAExecutionProvider and would use CPUExecution"):
        require_provider(session.get_providers(), "CUDAExecutionProvider")
    require_provider(["CUDAExecutionProvider", "CPUExecutionProvider"], "CUDAExecutionProvider")
