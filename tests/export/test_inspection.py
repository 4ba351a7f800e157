"""The inspector's JSON in the shapes of TensorRT 10 and 11. None was recorded by this project: no GPU was there.

WRITTEN_10 is written after NVIDIA's documentation of the engine inspector (10.x) and layers that users of 10.x show in
public; WRITTEN_11 after NVIDIA's migration guide from 10.x to 11.x, IEngineInspector.
"""

import json

import pytest

from hscc_edge.errors import EngineError
from hscc_edge.export.inspection import Inspection, names, read_inspection, require_precision


def convolution(name: str, kind: str, **more: object) -> dict[str, object]:
    """A layer of TensorRT 10 as documented, with the keys that the parser must pass over."""
    tensor = {"Dimensions": [1, 8, 28, 28], "Location": "Device", "Format/Datatype": kind}
    return {
        "Name": name, "LayerType": "CaskConvolution", "Inputs": [{"Name": f"{name}/in", **tensor}],
        "Outputs": [{"Name": f"{name}/out", **tensor}], "ParameterType": "Convolution", "Kernel": [3, 3],
        "Weights": {"Type": "Half", "Count": 576}, "Bias": {"Type": "Float", "Count": 8}, "Activation": "RELU",
        "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc", "StreamId": 0,
        "Metadata": f"[ONNX Layer: {name}]", **more,
    }  # fmt: skip


WRITTEN_10 = {
    "Layers": [
        {
            "Name": "Reformatting CopyNode for Input Tensor 0 to conv1",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "image", "Dimensions": [1, 1, 28, 28], "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [
                {"Name": "r", "Dimensions": [1, 1, 28, 28],
                 "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}
            ],
            "ParameterType": "Reformat",
            "Origin": "REFORMAT",
        },
        convolution("conv1", "Channel major FP16 format where channel % 8 == 0"),
        convolution("conv2", "Row major linear FP32"),
        convolution("conv3", "Thirty-two wide channel vectorized row major Int8 format"),
        {"Name": "__myl_Gemm_myl0_3", "LayerType": "gemm", "Inputs": [{"Name": "a", "Format/Datatype": "Half"}],
         "Outputs": [{"Name": "logits", "Format/Datatype": "Float"}], "TacticName": "sm80_xmma_gemm_f16f16"},
    ],
    "Bindings": ["image", "logits"],
}  # fmt: skip


def tensor_11(name: str, kind: str) -> dict[str, object]:
    return {"Name": name, "Dimensions": [1, 8, 28, 28], "Format": "Row major linear format (kLINEAR)", "DataType": kind}


WRITTEN_11 = {
    "Layers": [
        {"Name": "reformat", "LayerType": "Reformat", "Inputs": [tensor_11("image", "Float")],
         "Outputs": [tensor_11("r", "Half")]},
        {"Name": "conv1", "LayerType": "CaskConvolution", "Inputs": [tensor_11("r", "Half")],
         "Outputs": [tensor_11("a", "Half")], "Weights": {"Type": "Half", "Count": 576}},
        {"Name": "conv2", "LayerType": "CaskConvolution", "Inputs": [tensor_11("a", "Float")],
         "Outputs": [tensor_11("b", "Float")]},
        {"Name": "__myl_Gemm", "LayerType": "gemm", "Inputs": [tensor_11("b", "Int8")],
         "Outputs": [tensor_11("logits", "Float")]},
    ],
    "I/O Tensors": [
        {"Name": "image", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3, 224, 224], "Location": "Device",
         "IsShapeInferenceIO": False,
         "ProfileInfo": [{"MinShape": [1, 3, 224, 224], "OptShape": [1, 3, 224, 224], "MaxShape": [1, 3, 224, 224],
                          "Format": "Row major linear FP32 format (kLINEAR)"}]},
    ],
}  # fmt: skip


def test_the_shapes_of_both_majors_are_read():
    assert read_inspection(json.dumps(WRITTEN_10)) == Inspection(
        layers=5, typed=5, half=3, computing=4, quantised=1, full=("conv2",), reformats=1
    )
    assert read_inspection(json.dumps(WRITTEN_11)) == Inspection(
        layers=4, typed=4, half=2, computing=3, quantised=1, full=("conv2",), reformats=1
    )


def test_names_that_speak_of_a_type_are_not_one():
    layers = [{**convolution("half_of_it int8", "Float"), "Metadata": "fp16"}]
    found = read_inspection(json.dumps({"Layers": layers}))
    assert (found.half, found.quantised, found.full) == (0, 0, ("half_of_it int8",))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["half conv", "fp16 relu"], Inspection(2, 0, 0)),
        ([], Inspection(0, 0, 0)),
        ([convolution("c", "BFloat16")], Inspection(1, 1, 0, 1)),
    ],
)
def test_layers_without_types_count_as_untyped(layers, expected):
    assert read_inspection(json.dumps({"Layers": layers})) == expected


@pytest.mark.parametrize(
    ("precision", "found", "least"),
    [
        ("fp32", Inspection(3, 3, 0, 3, 0, ("a", "b", "c")), 1.0),
        ("fp16", Inspection(3, 3, 3, 3, 0, ()), 1.0),
        ("fp16", Inspection(3, 3, 2, 2, 0, ("a",)), 0.5),
        ("int8", Inspection(4, 4, 1, 2, 1, ()), 0.5),
    ],
)
def test_the_precision_that_was_asked_for_passes(precision, found, least):
    require_precision(found, precision, least=least, advice="-")


@pytest.mark.parametrize(
    ("precision", "found", "message"),
    [
        ("fp32", Inspection(3, 3, 1, 3), "fp32 was asked for, and 1 of the 3 layers are FP16 and 0 INT8: mend"),
        ("fp16", Inspection(3, 3, 1, 3, 0, ("a", "b")), r"2 of the 3 layers that compute are FP32 \(a, b\)"),
        ("fp16", Inspection(3, 3, 0, 0), "0 layers of all hold FP16"),
        ("int8", Inspection(9, 9, 9, 4, 1, ()), "1 take INT8, expected at least 50% in int8: mend"),
    ],
)
def test_another_precision_is_refused(precision, found, message):
    with pytest.raises(EngineError, match=message):
        require_precision(found, precision, least=0.5, advice="mend")


def test_a_long_list_of_names_is_cut():
    assert names(tuple("abcdefg")) == "a, b, c, d, e and 2 more"
    assert names(()) == "none"


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"Layers": 3}', '{"Layers": [3]}', '{"Layers": [{"Inputs": ["x"]}]}']
)
def test_another_answer_is_told(text):
    with pytest.raises(EngineError, match="the engine inspector's answer cannot be read"):
        read_inspection(text)
