"""What ONNX Runtime is given, and how it refuses what it cannot take."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from hscc_edge.errors import ExportError, InputError
from hscc_edge.runtime.ort import OrtRuntime


def graph(path: Path, names: tuple[str, str], kind: int) -> Path:
    ends = [helper.make_tensor_value_info(name, kind, ["batch", 1, 2, 2]) for name in names]
    node = helper.make_node("Relu", [names[0]], [names[1]])
    model = helper.make_model(
        helper.make_graph([node], "graph", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    path.write_bytes(model.SerializeToString())
    return path


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
        OrtRuntime(graph(tmp_path / "model.onnx", names, kind))


def test_an_image_of_another_shape_is_one_sentence(tmp_path):
    runtime = OrtRuntime(graph(tmp_path / "model.onnx", ("image", "logits"), TensorProto.FLOAT))
    assert runtime.infer(np.full((3, 1, 2, 2), -1, np.float32)).max() == 0
    with pytest.raises(InputError, match=r"images of shape \(1, 3, 2\) were given: the model takes \(1, 2, 2\)"):
        runtime.infer(np.zeros((1, 1, 3, 2), np.float32))
