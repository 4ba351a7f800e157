"""The inspector's JSON in the shapes that TensorRT 10 and 11 document: written by hand, since no GPU was there."""

import json

import pytest

from hscc_edge.errors import EngineError
from hscc_edge.export.inspection import Inspection, read_inspection


def layer(*types: str, split: bool = False) -> dict[str, object]:
    tensors = [{"Name": "t", "Format": "Linear", "DataType": kind} for kind in types]
    if not split:
        tensors = [{"Name": "t", "Dimensions": [1, 2], "Format/Datatype": kind} for kind in types]
    return {"Name": "half_of_it", "Inputs": tensors[:1], "Outputs": tensors[1:]}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([layer("Float", "Half"), layer("Half", "Half"), layer("Float", "Float")], Inspection(3, 3, 2)),
        ([layer("Row major linear FP32", "Row major linear FP16 format")], Inspection(1, 1, 1)),
        ([layer("Float", "Half", split=True), layer("Float", "Int8", split=True)], Inspection(2, 2, 1)),
        ([layer("BFloat16", "BFloat16"), layer("Int8", "FP8")], Inspection(2, 2, 0)),
        (["half conv", "fp16 relu"], Inspection(2, 0, 0)),
        ([], Inspection(0, 0, 0)),
    ],
)
def test_types_are_counted_by_layer(layers, expected):
    assert read_inspection(json.dumps({"Layers": layers, "Bindings": ["image", "logits"]})) == expected


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"Layers": 3}', '{"Layers": [3]}', '{"Layers": [{"Inputs": ["x"]}]}']
)
def test_another_answer_is_told(text):
    with pytest.raises(EngineError, match="the engine inspector's answer cannot be read"):
        read_inspection(text)
