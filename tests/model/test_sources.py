"""Models from Python, MONAI, torch.export and TorchScript become bundles that compute the same; the rest is told."""

import json
import pickle
import re
import warnings
import zipfile

import numpy as np
import onnx
import pytest
import torch
from monai.networks import nets
from onnx import TensorProto, helper, numpy_helper, parser
from safetensors.torch import save_file
from torch import nn

from hscc_edge.bundle import SOURCE, WEIGHTS, read_bundle
from hscc_edge.errors import ConfigError, InputError, ModelError
from hscc_edge.model.adoption import adopt
from hscc_edge.model.load import load_network
from hscc_edge.model.recipe import read_recipe
from hscc_edge.model.state import read_state
from hscc_edge.model.train import spec_of

LABELS = ("none", "ring", "blob")
FACTORY = '''
from torch import nn


def small(width=8, classes=3):
    """Batch norm, dropout and a softmax: what a bundle has to undo."""
    return nn.Sequential(
        nn.Conv2d(1, width, 5, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(8 * width, classes), nn.Softmax(-1),
    )


def undecided():
    class Undecided(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(4096, 3)

        def forward(self, x):
            return self.last(x.flatten(1)) if x.sum() > 0 else self.last(-x.flatten(1))

    return Undecided()


def number():
    return 3
'''
COUNTED = (nn.Conv2d, nn.Linear)


@pytest.fixture
def ward(tmp_path, monkeypatch):
    """A hospital's own Python module, and its network with weights."""
    (tmp_path / "ward_networks.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "ward_networks", raising=False)
    import ward_networks

    torch.manual_seed(0)
    network = ward_networks.small(width=12).eval()
    network[1].running_mean.normal_()
    network[1].bias.data.normal_()
    return network


@pytest.fixture
def site(tmp_path, recipe):
    """Reads a recipe for import, with changes."""

    def read(labels=LABELS, head="softmax", **changes):
        text = recipe.read_text()
        text = text[: text.index("[train]")] + text[text.index("[site]") :]
        text, count = re.subn(r"^args = .*", "args = { width = 12 }", text, flags=re.MULTILINE)
        assert count == 1
        code = '[findings.{0}]\nvalue = "{0}"\nscheme = "99T"\nmeaning = "{0}"\n'
        codes = "".join(code.format(label) for label in dict.fromkeys(labels))
        text += codes
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "site.toml"
        path.write_text(f'labels = {json.dumps(labels)}\nhead = "{head}"\n{text}')
        return read_recipe(path)

    return read


def images(count=3):
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(1))


def probabilities(bundle, batch):
    with torch.no_grad():
        return load_network(bundle)(batch).softmax(-1)


def counted(network):
    return sorted(str(module) for module in network.modules() if isinstance(module, COUNTED))


def test_weights_however_they_were_saved(ward, tmp_path):
    state = ward.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "plain.pt")
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": item for name, item in state.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pth")
    for name in ("w.safetensors", "plain.pt", "wrapped.pth"):
        found = read_state(tmp_path / name)
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_a_python_factory_with_weights(kind, ward, site, tmp_path):
    weights = tmp_path / f"w.{kind}"
    save_file(ward.state_dict(), weights) if kind == "safetensors" else torch.save(ward.state_dict(), weights)
    bundle = adopt("ward_networks:small", site(), tmp_path / "out", weights)
    with torch.no_grad():
        assert torch.allclose(probabilities(bundle, images()), ward(images()), atol=1e-5)
    network = load_network(bundle)
    assert counted(network) == counted(ward)
    assert {name for name, module in network.named_modules() if isinstance(module, COUNTED)} == {
        "network.n0", "network.n3", "network.n8",
    }  # fmt: skip
    assert bundle.spec.training["imported"] == "factory" and bundle.spec.training["tail"] == "softmax"
    assert bundle.spec.labels == LABELS and read_bundle(bundle.root).digest == bundle.digest
    assert bundle.path(SOURCE).stat().st_size < bundle.path(WEIGHTS).stat().st_size


class Bomb:
    """What a pickle must not be able to do."""

    def __reduce__(self):
        return (open, ("exploded", "w"))


def bombed_program(path, tmp_path):
    """A program whose sample inputs are such a pickle."""
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "bomb.pt2", "w") as target:
        for name in source.namelist():
            bomb = name.endswith("sample_inputs/model.pt")
            target.writestr(name, pickle.dumps(Bomb(), protocol=2) if bomb else source.read(name))
    return tmp_path / "bomb.pt2"


def test_a_pickle_that_could_run_code_is_refused(ward, site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(ModelError, match="more in it than tensors"):
        adopt("ward_networks:small", site(), tmp_path / "out", tmp_path / "bomb.pt")
    torch.save(ward, tmp_path / "whole.pt")
    with pytest.raises(ModelError, match="more in it than tensors"):
        adopt("ward_networks:small", site(), tmp_path / "out", tmp_path / "whole.pt")
    with pytest.raises(ModelError, match=r"no TorchScript: .*--weights whole\.pt"):
        adopt(str(tmp_path / "whole.pt"), site(), tmp_path / "out")
    bomb = bombed_program(program(ward, tmp_path), tmp_path)
    with pytest.raises(ModelError, match="no program that can be opened safely"):
        adopt(str(bomb), site(), tmp_path / "out")
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "out").exists()


def program(network, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = ({0: torch.export.Dim("batch")},)
        torch.export.save(torch.export.export(network, (images(2),), dynamic_shapes=axes), tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def script(network, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(network, images(2)).save(str(tmp_path / "model.ts"))
    return tmp_path / "model.ts"


@pytest.mark.parametrize("save", [program, script])
def test_a_saved_program(save, ward, site, tmp_path):
    bundle = adopt(str(save(ward, tmp_path)), site(), tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(probabilities(bundle, images()), ward(images()), atol=1e-5)
    assert counted(load_network(bundle)) == counted(ward)
    assert bundle.spec.training["imported"] == {program: "exported", script: "torchscript"}[save]


@pytest.fixture
def monai_bundle(tmp_path):
    """As in MONAI's zoo: a network_def with references, and a state dict."""
    root, torch_state = tmp_path / "zoo", tmp_path / "zoo" / "models" / "model.pt"
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    config = {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "class_count": 3,
        "device": "$torch.device('cuda')",
        "network_def": {
            "_target_": "DenseNet", "spatial_dims": 2, "in_channels": 1, "out_channels": "@class_count",
            "init_features": 8, "growth_rate": 4, "block_config": [2, 2],
        },
        "network": "$@network_def.to(@device)",
    }  # fmt: skip
    (root / "configs" / "inference.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    network = nets.DenseNet(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2)).eval()
    torch.save(network.state_dict(), torch_state)
    return root, network


def test_a_monai_bundle(monai_bundle, site, tmp_path):
    root, network = monai_bundle
    bundle = adopt(str(root), site(), tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(load_network(bundle)(images()), network(images()), atol=1e-5)
    assert "network.features_denseblock1_denselayer1_layers_conv1" in dict(load_network(bundle).named_modules())
    assert bundle.spec.training["imported"] == "monai-bundle"


def test_what_a_monai_bundle_lacks_is_told(monai_bundle, site, tmp_path):
    root, network = monai_bundle
    (root / "models" / "model.pt").unlink()
    with pytest.raises(InputError, match="has no weights"):
        adopt(str(root), site(), tmp_path / "out")
    (root / "configs" / "inference.json").write_text('{"network_def": {"_target_": "NoSuchNet"}}')
    torch.save(network.state_dict(), root / "models" / "model.pt")
    with pytest.raises(ModelError, match="gives no network"):
        adopt(str(root), site(), tmp_path / "out")
    (root / "configs" / "inference.json").unlink()
    with pytest.raises(InputError, match=r"no configs/inference\.json"):
        adopt(str(root), site(), tmp_path / "out")
    (root / "configs" / "hscc.json").touch()
    with pytest.raises(InputError, match="bundle of hscc-edge already"):
        adopt(str(root), site(), tmp_path / "out")


def test_what_a_factory_lacks_is_told(ward, site, tmp_path):
    weights = tmp_path / "w.pt"
    torch.save(ward.state_dict(), weights)
    for source, given, error, words in (
        ("ward_networks:small", None, InputError, "without weights"),
        ("ward_networks:small", tmp_path / "absent.pt", ModelError, "do not exist"),
        ("ward_networks:large", weights, ModelError, "AttributeError"),
        ("no_such_package:small", weights, ModelError, "ModuleNotFoundError"),
        ("ward_networks:number", weights, ModelError, "TypeError"),
        (str(tmp_path / "absent.onnx"), None, InputError, "does not exist: expected model.onnx"),
        (str(weights), weights, InputError, "holds its own"),
    ):
        with pytest.raises(error, match=words):
            adopt(source, site(), tmp_path / "out", given)
    with pytest.raises(ModelError, match=r"not those of the network .*size mismatch"):
        adopt("ward_networks:small", site(**{"width = 12": "width = 10"}), tmp_path / "out", weights)
    torch.save([1, 2], weights)
    with pytest.raises(ModelError, match="holds no state dict"):
        adopt("ward_networks:small", site(), tmp_path / "out", weights)
    assert not (tmp_path / "out").exists()


def test_a_network_that_cannot_be_traced_is_told(ward, site, tmp_path):
    import ward_networks

    torch.save(ward_networks.undecided().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"torch cannot trace the network .*branch"):
        adopt("ward_networks:undecided", site(**{"width = 12": ""}), tmp_path / "out", tmp_path / "w.pt")


def graph(path, nodes="", shape=(None, 1, 64, 64), scale=1.0, outputs=3, weights=None, kind=TensorProto.FLOAT):
    """A tiny classifier written by hand."""
    rng = np.random.default_rng(0)
    nodes = nodes or "a = Conv<strides=[8,8]>(x, w)\nb = GlobalAveragePool(a)\nc = Flatten(b)\ny = MatMul(c, v)"
    held = {"w": rng.standard_normal((6, 1, 5, 5)), "v": scale * rng.standard_normal((6, outputs))} | (weights or {})
    content = helper.make_graph(
        [parser.parse_node(line) for line in nodes.splitlines()], "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, outputs])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in held.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(content, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


BODY = "a = Conv<strides=[8,8]>(x, w)\nb = GlobalAveragePool(a)\nc = Flatten(b)\nd = MatMul(c, v)\n"


@pytest.mark.parametrize(
    ("made", "declared", "error", "words"),
    [
        ({}, {"labels": ("none", "ring")}, ConfigError, r"shape \(1, 3\): the recipe's softmax head with 2 labels"),
        ({}, {"labels": ()}, ConfigError, "names no labels"),
        ({}, {"labels": ("a", "a", "b")}, ConfigError, "one of them twice"),
        ({}, {"head": "single_logit", "labels": ("no", "yes")}, ConfigError, r"needs \(1, 1\)"),
        ({}, {"findings.ring": "findings.rung"}, ConfigError, "the label 'ring' has no coded finding"),
        ({}, {"height = 64, width = 64": "height = 32, width = 64"}, ModelError, r"gives \(C, H, W\) \(1, 32, 64\)"),
        ({"scale": np.nan}, {}, ModelError, "a black image an output that is not finite"),
        ({"scale": 0.0}, {}, ModelError, "does not look at its image"),
        ({"nodes": BODY + "y = Softmax(d)"}, {"head": "sigmoid"}, ConfigError, "ends in a softmax"),
        ({"nodes": BODY + "y = Sigmoid(d)"}, {}, ConfigError, "ends in a sigmoid"),
        (
            {"nodes": BODY + "y = LpNormalization(d)"},
            {},
            ModelError,
            "has the operator LpNormalization of opset 17, which is not",
        ),
        ({"kind": TensorProto.INT32}, {}, ModelError, "is of int32: expected float32"),
    ],
)
def test_an_onnx_file_that_does_not_fit_is_told(made, declared, error, words, site, tmp_path):
    with pytest.raises(error, match=words):
        adopt(graph(tmp_path / "m.onnx", **made), site(**declared), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_heads_and_layouts(site, tmp_path):
    nodes = BODY.replace("Conv<strides=[8,8]>(x, w)", "Conv<strides=[8,8]>(t, w)")
    nodes = "t = Transpose<perm=[0,3,1,2]>(x)\n" + nodes + "y = Sigmoid(d)"
    path = graph(tmp_path / "m.onnx", nodes, (4, 64, 64, 1), outputs=1)
    bundle = adopt(path, site(head="single_logit", labels=("no", "yes")), tmp_path / "out")
    assert bundle.spec.network == {"name": "onnx", "args": {"layout": "NHWC"}}
    import onnxruntime

    batch = images(4)
    (expected,) = onnxruntime.InferenceSession(path).run(None, {"x": batch.permute(0, 2, 3, 1).numpy()})
    with torch.no_grad():
        found = load_network(bundle)(batch)
    assert found.shape == (4, 1) and np.allclose(found.sigmoid(), expected, atol=1e-5)


def test_several_inputs_are_refused(site, tmp_path):
    content = onnx.load(graph(tmp_path / "m.onnx"))
    content.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, [None, 1]))
    onnx.save(content, tmp_path / "two.onnx")
    with pytest.raises(ModelError, match="has 2 inputs and 1 outputs"):
        adopt(str(tmp_path / "two.onnx"), site(), tmp_path / "out")


def test_a_recipe_for_import_does_not_train(site, phantom):
    with pytest.raises(ConfigError, match=r"has no table \[train\]"):
        _ = site().schedule
    assert site(phantom.classes).labels == spec_of(site(phantom.classes), phantom).labels
