"""FP16 where its range allows, FP32 by name and reason elsewhere, and an emulation that follows."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import REGIONAL, Tokens, chain, noise, regional, run

from hscc_edge.errors import ExportError
from hscc_edge.export.calibrate import spans
from hscc_edge.export.engine import build_engine
from hscc_edge.export.onnx import check_onnx, export_onnx
from hscc_edge.export.precision import emulated_fp16, full_nodes, half_weights, to_fp16

SHAPE = (1, 2, 2)


def test_fp16_is_fp16_inside_and_fp32_outside():
    full = regional()
    half = check_onnx(to_fp16(full))
    kinds = {t.data_type for t in half.graph.initializer} - {onnx.TensorProto.INT64}
    assert half_weights(half) > 0 and kinds == {onnx.TensorProto.FLOAT16}
    ends = [item.type.tensor_type.elem_type for item in (*half.graph.input, *half.graph.output)]
    assert ends == [onnx.TensorProto.FLOAT] * 2
    images = noise(2, REGIONAL)
    assert 0 < np.abs(run(full, images) - run(emulated_fp16(to_fp16(full)), images)).max() < 1e-2


def ones() -> list[np.ndarray]:
    return [np.ones(SHAPE, np.float32)]


def test_emulation_shows_an_overflow_that_the_cpu_hides():
    full = chain(3e4, 0.1)
    assert np.isfinite(run(full, ones())).all()
    assert not np.isfinite(run(emulated_fp16(to_fp16(full)), ones())).any()


def test_what_overflows_stays_in_fp32_by_name_and_reason():
    """Values are 1, 1.2e5, 4.8e5, 1.92: two nodes make what FP16 cannot hold, and the third reads it."""
    full = chain(3e4, 1.0, 1e-6, 0.25)
    kept = full_nodes(full, spans(full, ones))
    nodes = [node.name for node in check_onnx(full).graph.node if node.op_type in ("Gemm", "MatMul")]
    assert list(kept) == nodes[:3]
    assert "reaches 1.2e+05, and FP16 ends at 65504" in kept[nodes[0]]
    mixed = to_fp16(full, kept)
    assert np.allclose(run(emulated_fp16(mixed), ones()), run(full, ones()), rtol=1e-3)
    assert half_weights(check_onnx(mixed)) == 1


def test_a_margin_is_kept_for_images_that_were_not_calibrated_on():
    assert full_nodes(chain(8e3, 1e-3), spans(chain(8e3, 1e-3), ones)) != {}
    assert full_nodes(chain(2e3, 1e-3), spans(chain(2e3, 1e-3), ones)) == {}


@pytest.mark.parametrize(
    ("weight", "why"),
    [(1e5, "reaches 1e+05, and FP16 ends at 65504"), (1.7e-7, "to FP16's subnormal numbers")],
)
def test_weights_that_do_not_fit_keep_their_node_in_fp32(weight, why):
    bad = chain(0.3, weight, 0.3)
    kept = full_nodes(bad, spans(bad, ones))
    assert why in kept["node_layer2"] and "node_layer1" not in kept
    assert np.allclose(run(emulated_fp16(to_fp16(bad, kept)), ones()), run(bad, ones()), rtol=2e-3)
    assert full_nodes(regional(), {}) == {}


def test_values_that_are_only_subnormal_stay_in_fp32():
    full = chain(1e-3, 3e-3, 1e4)
    kept = full_nodes(full, spans(full, ones))
    assert len(kept) == 2 and all("loses digits below 6.1e-05" in reason for reason in kept.values())


def test_a_weight_beyond_fp16_is_refused_not_clipped():
    with pytest.raises(ExportError, match=r"reaches 1e\+05, and FP16 ends at 65504"):
        to_fp16(chain(1e5))


def test_a_graph_without_fp16_is_not_emulated():
    with pytest.raises(ExportError, match="holds no FP16"):
        emulated_fp16(regional())
    with pytest.raises(ExportError, match="holds no FP16 weight"):
        to_fp16(chain(0.1), full_nodes(chain(1e5), {}))


def test_emulation_leaves_integers_alone():
    torch.manual_seed(0)
    full = export_onnx(Tokens().eval(), (1, 8, 8))
    assert "Shape" in {node.op_type for node in check_onnx(full).graph.node}
    images = noise(2, (1, 8, 8))
    assert np.allclose(run(full, images), run(emulated_fp16(to_fp16(full)), images), atol=1e-2)


def test_the_builder_takes_a_mixed_graph_and_names_what_is_fp32(tmp_path: Path):
    kept = next(node.name for node in check_onnx(regional()).graph.node if node.op_type == "Conv")
    facts = build_engine(to_fp16(regional(), [kept]), precision="fp16", shape=REGIONAL, max_batch=2, cache=tmp_path)
    assert facts.full_layers == (kept,) and facts.half_layers > 10
