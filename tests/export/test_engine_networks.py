"""Engines from a real builder, and the precision check on them. Whole networks are in test_whole_networks."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from monai.networks import nets
from onnx import helper
from torch import nn

from hscc_edge.errors import EngineError
from hscc_edge.export.builder import BuildOptions
from hscc_edge.export.engine import build_engine
from hscc_edge.export.onnx import check_onnx, export_onnx
from hscc_edge.export.precision import to_fp16
from hscc_edge.model.layers import factorised, replace
from hscc_edge.model.plan import Box, LayerPlan
from hscc_edge.model.zoo import AlexNet, ViT
from hscc_edge.runtime.engines import EngineFacts


def hscc(network: AlexNet, side: int = 3, rank: int = 16) -> nn.Module:
    """AlexNet with own factors a region, a shared reduce (on maps of that side), one region and a factorised Linear."""
    wide = 2 * side + 1
    halves = (Box((0, 0), (side + 1, wide)), Box((side + 1, 0), (wide, wide)))
    parts = (Box((0, 0), (side, side // 2)), Box((0, side // 2), (side, side)))
    for name, structure, ranks, regions in (
        ("features.3", "own-factors", (rank, rank // 2), halves),
        ("features.6", "shared-reduce", (rank,), parts),
        ("features.8", "one-region", (rank,), ()),
        ("classifier.4", "one-region", (6,), ()),
    ):
        plan = LayerPlan(
            name, structure, ranks, regions, "", flops=0, dense_flops=0, params=0, dense_params=0, loss=0.0
        )
        replace(network, name, factorised(network.get_submodule(name), plan))
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "alexnet": (lambda: AlexNet(1, 4, pool=1, hidden=32), (1, 64, 64)),
    "hscc-alexnet": (lambda: hscc(AlexNet(1, 4, pool=1, hidden=32)), (1, 64, 64)),
    "vit": (
        lambda: ViT(1, 3, size=32, patch=16, hidden_size=48, mlp_dim=64, num_layers=2, num_heads=4),
        (1, 32, 32),
    ),
    "densenet-3d": (
        lambda: nets.DenseNet(
            spatial_dims=3, in_channels=1, out_channels=3, init_features=8, growth_rate=4, block_config=(2, 2)
        ),
        (1, 16, 16, 16),
    ),
}  # fmt: skip


def built(network: nn.Module, shape: tuple[int, ...], cache: Path) -> int:
    """Engines of both precisions, each what was asked for, and none for a graph that is FP32; its half layers."""
    full = export_onnx(network.eval(), shape)
    facts: dict[str, EngineFacts] = {}
    for precision, content in (("fp32", full), ("fp16", to_fp16(full))):
        facts[precision] = build_engine(content, precision=precision, shape=shape, max_batch=2, cache=cache)
    assert facts["fp32"].half_layers == 0
    assert facts["fp16"].full_layers == () and facts["fp16"].bytes < facts["fp32"].bytes
    with pytest.raises(EngineError, match=r"fp16 was asked for, and (\d+) of the \1 layers that compute are FP32 \("):
        build_engine(full, precision="fp16", shape=shape, max_batch=2, cache=cache)
    return facts["fp16"].half_layers


@pytest.mark.parametrize("name", NETWORKS)
def test_an_engine_has_the_precision_that_was_asked_for(name, tmp_path):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    assert built(make(), shape, tmp_path) > 20


@pytest.fixture(scope="module")
def small() -> tuple[bytes, tuple[int, ...]]:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    return export_onnx(nn.Sequential(*layers).eval(), (1, 6, 6)), (1, 6, 6)


def keep_full(content: bytes, names: set[str]) -> bytes:
    """An FP16 graph in which some nodes compute in FP32, between casts."""
    model = check_onnx(to_fp16(content))
    nodes = []
    for node in model.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        casts = [
            helper.make_node("Cast", [name], [f"{node.name}/{name}"], to=onnx.TensorProto.FLOAT, name=f"up/{name}")
            for name in node.input
        ]
        down = helper.make_node(
            "Cast", [f"{node.name}/out"], [node.output[0]], to=onnx.TensorProto.FLOAT16, name=f"{node.name}/down"
        )
        node.input[:] = [f"{node.name}/{name}" for name in node.input]
        node.output[:] = [f"{node.name}/out"]
        nodes += [*casts, node, down]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString(deterministic=True))


def computing(content: bytes) -> list[str]:
    return [node.name for node in check_onnx(content).graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]


def test_a_graph_that_keeps_some_layers_in_fp32_is_told_by_name_and_built(small, tmp_path):
    content, shape = small
    kept = computing(content)[1]
    facts = build_engine(keep_full(content, {kept}), precision="fp16", shape=shape, max_batch=1, cache=tmp_path)
    assert facts.full_layers == (kept,) and facts.reformats >= 2


def test_a_graph_that_claims_fp16_with_its_weights_alone_is_refused(small, tmp_path):
    """Half weights and half tensors at both ends, and every layer that multiplies in FP32."""
    content, shape = small
    kept = computing(content)
    faked = keep_full(content, set(kept))
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in check_onnx(faked).graph.initializer)
    with pytest.raises(EngineError) as caught:
        build_engine(faked, precision="fp16", shape=shape, max_batch=1, cache=tmp_path)
    assert "3 of the 3 layers that compute are FP32" in str(caught.value)
    assert all(name in str(caught.value) for name in kept)
    assert not list(tmp_path.glob("*.engine"))
    with pytest.raises(EngineError, match="1 of the 3 layers that compute are FP32"):
        strict = BuildOptions(least_share=1.0)
        one = keep_full(content, {kept[0]})
        build_engine(one, precision="fp16", shape=shape, max_batch=1, cache=tmp_path, options=strict)
