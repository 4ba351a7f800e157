"""A hospital's ONNX model, all the way: import, compress, the drop-in in its place."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from commandline import run
from onnx import TensorProto, helper, numpy_helper, parser
from torch import nn

from hscc_edge.bundle import SOURCE, WEIGHTS, read_bundle
from hscc_edge.data.case import stream
from hscc_edge.model.load import load_network

SIZE = 64
NODES = """
turned = Transpose <perm=[0,3,1,2]> (input_1)
c1 = Conv <auto_pad="SAME_UPPER", kernel_shape=[3,3]> (turned, w1, b1)
r1 = Relu (c1)
p1 = MaxPool <kernel_shape=[2,2], strides=[2,2], auto_pad="VALID"> (r1)
c2 = Conv <auto_pad="SAME_UPPER", kernel_shape=[3,3]> (p1, w2, b2)
r2 = Relu (c2)
c3 = Conv <auto_pad="SAME_UPPER", kernel_shape=[3,3], strides=[2,2]> (r2, w3, b3)
r3 = Relu (c3)
p3 = MaxPool <kernel_shape=[2,2], strides=[2,2], auto_pad="VALID"> (r3)
back = Transpose <perm=[0,2,3,1]> (p3)
flat = Reshape (back, rows)
m1 = MatMul (flat, w4)
a1 = Add (m1, b4)
r4 = Relu (a1)
m2 = MatMul (r4, w5)
a2 = Add (m2, b5)
predictions = Softmax <axis=-1> (a2)
"""


class Twin(nn.Module):
    """What the Keras model computes, in torch; SAME_UPPER with stride 2 pads below and right alone."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.third, self.pool = nn.Conv2d(32, 48, 3, stride=2), nn.MaxPool2d(2)
        self.hidden, self.last = nn.Linear(48 * 64, 48), nn.Linear(48, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.pool(self.first(x).relu())).relu()
        x = self.pool(self.third(nn.functional.pad(x, (0, 1, 0, 1))).relu())
        return self.last(self.hidden(x.permute(0, 2, 3, 1).flatten(1)).relu())


def keras_style(twin: Twin, classes: int, path: Path) -> Path:
    """The twin as tf2onnx writes a Keras network."""
    held = {"rows": np.array([-1, 48 * 64])}
    for number, layer in enumerate((twin.first, twin.second, twin.third, twin.hidden, twin.last), 1):
        weight = layer.weight.detach().numpy()
        held |= {f"w{number}": weight.T if number > 3 else weight, f"b{number}": layer.bias.detach().numpy()}
    graph = helper.make_graph(
        [parser.parse_node(line) for line in NODES.strip().splitlines()], "keras",
        [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, ["unk__1", SIZE, SIZE, 1])],
        [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, ["unk__2", classes])],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in held.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def fade(weight: torch.Tensor) -> None:
    """Let the singular values fall, as training does."""
    u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    falling = s / torch.arange(1, len(s) + 1) ** 1.5
    weight.copy_((u * (falling * s.norm() / falling.norm()) @ v).reshape(weight.shape))


@pytest.fixture(scope="module")
def images(phantom, recipe) -> np.ndarray:
    """The cohort's test images (N, C, H, W), preprocessed as in the recipe."""
    from hscc_edge.model.recipe import read_recipe

    return np.stack([image for _, image in stream(phantom.select("test"), read_recipe(recipe).preprocess)])


@pytest.fixture(scope="module")
def model(tmp_path_factory, phantom, images) -> Path:
    """A Keras-style file whose probabilities differ from image to image."""
    torch.manual_seed(3)
    twin = Twin(len(phantom.classes))
    for layer in (twin.first, twin.second, twin.third, twin.hidden):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        fade(layer.weight.data)
    with torch.no_grad():
        logits = twin(torch.from_numpy(images))
        twin.last.weight.mul_(2 / logits.std(0).mean())
        twin.last.bias.sub_(twin(torch.from_numpy(images)).mean(0))
    return keras_style(twin, len(phantom.classes), tmp_path_factory.mktemp("keras") / "model.onnx")


@pytest.fixture
def site(tmp_path, recipe, phantom) -> Path:
    """The tiny recipe without network and training, with labels and findings."""
    text = recipe.read_text()
    text = text[: text.index("[network]")] + text[text.index("[decision]") : text.index("[train]")] + text[
        text.index("[site]") :
    ]  # fmt: skip
    for label in phantom.classes:
        text += f'[findings.{label}]\nvalue = "{label}"\nscheme = "99T"\nmeaning = "{label}"\n'
    path = tmp_path / "site.toml"
    path.write_text(f"labels = {json.dumps(phantom.classes)}\n{text}")
    return path


def ask(path: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)[0]


def test_a_keras_style_model_all_the_way(model, site, phantom, images, tmp_path, monkeypatch, capsys):
    dense, small, dropin = tmp_path / "dense", tmp_path / "small", tmp_path / "small.onnx"
    code, out, err = run(monkeypatch, capsys, "import", model, "--recipe", site, "--out", dense, "--json")
    assert code == 0, err
    assert json.loads(out)["network"] == {"name": "onnx", "args": {"layout": "NHWC"}}
    imported = read_bundle(dense)
    assert imported.path(SOURCE).stat().st_size < 0.05 * imported.path(WEIGHTS).stat().st_size
    feed = {"input_1": np.ascontiguousarray(images.transpose(0, 2, 3, 1))}
    before = ask(model, feed)
    with torch.no_grad():
        as_bundle = load_network(imported)(torch.from_numpy(images)).softmax(-1).numpy()
    assert np.allclose(as_bundle, before, atol=1e-5)

    words = ("compress", dense, "--cohort", phantom.root, "--budget", "bytes=2x", "--images", 48, "--out", small)
    code, out, err = run(monkeypatch, capsys, *words, "--json")
    assert code == 0 and json.loads(out)["plan"]["budget"] == "bytes=2x", err
    code, out, err = run(monkeypatch, capsys, "export", small, "--dropin", dropin, "--json")
    assert code == 0, err
    assert json.loads(out)["dropin"] == {
        "file": str(dropin), "bytes": dropin.stat().st_size, "inputs": ["input_1"], "outputs": ["predictions"],
    }  # fmt: skip
    after = ask(dropin, feed)
    assert np.allclose(after.sum(1), 1, atol=1e-5)
    kl = (before * np.log(before / after)).sum(1).mean()
    spread = (before * np.log(before / before.mean(0))).sum(1).mean()
    assert kl < 0.02 * spread
    assert dropin.stat().st_size < 0.6 * model.stat().st_size
    for count in (1, 3):
        assert np.allclose(ask(dropin, {"input_1": feed["input_1"][:count]}), after[:count], atol=1e-5)

    code, out, err = run(
        monkeypatch, capsys, "export", small, "--cohort", phantom.root, "--images", 4, "--precision", "fp32", "--json"
    )
    assert code == 0 and json.loads(out)["precision"]["fp32"]["top1_agreement"] == 1.0, err
    code, _, err = run(monkeypatch, capsys, "export", small, "--dropin", dropin)
    assert code == 2 and "stands there already" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["import", "{tmp}/absent.onnx", "--recipe", "{site}", "--out", "{out}"], "absent.onnx does not exist"),
        (["import", "{model}", "--recipe", "{recipe}", "--out", "{out}"], "names no labels"),
        (["import", "{model}", "--recipe", "{tmp}/absent.toml", "--out", "{out}"], "the recipe"),
        (["import", "some.package:network", "--recipe", "{site}", "--out", "{out}"], "came without weights"),
        (["import", "{model}", "--recipe", "{site}", "--out", "{tmp}"], "stands there already"),
        (["train", "{site}", "--cohort", "{cohort}", "--out", "{out}"], "has no table [train]"),
        (["export", "{dense}"], "nothing to export was named"),
        (["export", "{dense}", "--dropin", "{tmp}/new.onnx"], "was not imported"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_mistake_is_one_sentence(words, sentence, model, site, recipe, dense, phantom, tmp_path, monkeypatch, capsys):
    places = {"tmp": tmp_path, "site": site, "recipe": recipe, "dense": dense, "model": model, "cohort": phantom.root}
    words = [word.format(**places, out=tmp_path / "out") for word in words]
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2 and sentence in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "out").exists() and not (tmp_path / "new.onnx").exists()
