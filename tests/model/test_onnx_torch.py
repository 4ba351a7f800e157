"""What torch's two exporters write comes back with the same layers and the same logits."""

import copy
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hscc_edge.model.onnx_import import import_onnx

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class Gated(nn.Module):
    """Squeeze and excitation around a depthwise convolution, with hard activations and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x):
        y = functional.hardswish(self.norm(self.depthwise(x)))
        gate = functional.adaptive_avg_pool2d(y, 1).view(y.shape[0], y.shape[1])
        gate = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(gate))))
        return x + y * gate.view(*gate.shape, 1, 1).expand_as(y)


class Attention(nn.Module):
    """A block of a vision transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        batch, tokens, width = x.shape
        parts = self.qkv(self.first(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.second(x))


class Transformer(nn.Module):
    """Patches, a class token, positions, one block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.block, self.norm, self.head = Attention(16, 2), nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.place
        return self.head(self.norm(self.block(x))[:, 0])


class Pair(nn.Module):
    """Two inputs, two outputs, and one stem that both inputs pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.classes, self.flag = nn.Conv2d(1, 4, 3, stride=2), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x, y):
        both = torch.cat([self.stem(item).relu().amax((2, 3)) for item in (x, y)], dim=1)
        return self.classes(both).softmax(-1), self.flag(both).sigmoid()


def stem(width: int) -> list[nn.Module]:
    return [nn.Conv2d(3, width, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]


NETWORKS = {
    "plain": lambda: nn.Sequential(
        *stem(8), nn.Conv2d(8, 6, 3, dilation=2), nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Dropout(),
        nn.Linear(54, 8), nn.ReLU6(), nn.Linear(8, 4), nn.Softmax(-1),
    ),
    "gated": lambda: nn.Sequential(*stem(8), Gated(8), nn.SiLU(), Gated(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "normed": lambda: nn.Sequential(
        *stem(8), nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Upsample(scale_factor=2), nn.PReLU(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ),
    "volume": lambda: nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.ELU(), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(32, 2)
    ),
    "signal": lambda: nn.Sequential(nn.Conv1d(2, 4, 5), nn.Tanh(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(12, 2)),
    "transformer": Transformer,
    "pair": Pair,
}  # fmt: skip
SHAPES = {"volume": [(1, 6, 6, 6)], "signal": [(2, 10)], "pair": [(1, 9, 9), (1, 9, 9)]}
TAILS = {"plain": ("softmax",), "pair": ("softmax", "sigmoid")}


def export(network, inputs, path, dynamo):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        if dynamo:
            axes = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
            torch.onnx.export(
                network, inputs, path, dynamo=True, dynamic_shapes=axes, verbose=False, external_data=False
            )
        else:
            names = [f"input_{number}" for number in range(len(inputs))]
            torch.onnx.export(
                network, inputs, path, dynamo=False, input_names=names, opset_version=17,
                dynamic_axes={name: {0: "batch"} for name in names},
            )  # fmt: skip


def counted(network):
    return Counter(type(module) for module in network.modules() if isinstance(module, COUNTED))


@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "script"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_torch_network_comes_back(name, dynamo, tmp_path):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
    shapes = SHAPES.get(name, [(3, 32, 32)])
    path = tmp_path / "network.onnx"
    export(network, tuple(torch.randn(2, *shape) for shape in shapes), str(path), dynamo)
    imported = import_onnx(path)
    assert counted(imported.network) == counted(network)
    assert imported.tail == TAILS.get(name, ("",))
    inputs = [torch.randn(3, *shape) for shape in shapes]
    with torch.no_grad():
        expected, found = network(*inputs), imported.network(*inputs)
        also = copy.deepcopy(imported.network)(*inputs)
    several = isinstance(found, tuple)
    ends = {"": lambda y: y, "softmax": lambda y: y.softmax(-1), "sigmoid": torch.sigmoid}
    for wanted, first, second, tail in zip(*((expected, found, also) if several else ([expected], [found], [also])),
                                           imported.tail, strict=True):  # fmt: skip
        assert np.allclose(ends[tail](first), wanted, atol=1e-5)
        assert torch.equal(first, second)


def test_a_stem_that_runs_twice_is_one_layer(tmp_path):
    network, calls = Pair().eval(), []
    path = tmp_path / "pair.onnx"
    export(network, (torch.randn(2, 1, 9, 9), torch.randn(2, 1, 9, 9)), str(path), dynamo=False)
    imported = import_onnx(path).network
    (shared,) = (module for module in imported.modules() if isinstance(module, nn.Conv2d))
    shared.register_forward_hook(lambda *_: calls.append(1))
    imported(torch.randn(1, 1, 9, 9), torch.randn(1, 1, 9, 9))
    assert len(calls) == 2
