"""Does an image get the same bits whatever batch it comes in: ONNX Runtime on the CPU and torch, whole networks.

    python benchmarks/batches.py [--out docs/batches.json] [--only NAME]

Networks of full size with made-up weights, 16 images of noise; each batch size is compared with one image a call. Also
compared: a second session, and the same batch a second time. Takes a few minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from monai.networks import nets
from numpy.typing import NDArray
from torch import nn

from hscc_edge import durable
from hscc_edge.export.onnx import export_onnx
from hscc_edge.model.layers import factorised, replace
from hscc_edge.model.plan import Box, LayerPlan
from hscc_edge.model.zoo import AlexNet
from hscc_edge.validate.machine import machine_facts

IMAGES, BATCHES = 16, (2, 3, 4, 8, 16)
Infer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
NINTHS = tuple(Box((top, left), (top + 9, left + 9)) for top in (0, 9, 18) for left in (0, 9, 18))


def regions() -> nn.Module:
    """AlexNet with a shared reduce over nine regions, own factors for them, and one region."""
    network = AlexNet()
    for name, structure, ranks in (
        ("features.3", "shared-reduce", (24,)),
        ("features.6", "one-region", (32,)),
    ):
        plan = LayerPlan(
            name, structure, ranks, NINTHS if structure == "shared-reduce" else (), "",
            flops=0, dense_flops=0, params=0, dense_params=0, loss=0.0,
        )  # fmt: skip
        replace(network, name, factorised(network.get_submodule(name), plan))
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "AlexNet": (AlexNet, (3, 224, 224)),
    "AlexNet, factorised with regions": (regions, (3, 224, 224)),
    "DenseNet121": (lambda: nets.DenseNet121(spatial_dims=2, in_channels=3, out_channels=4), (3, 224, 224)),
    "ResNet50": (lambda: nets.resnet50(spatial_dims=2, n_input_channels=3, num_classes=4), (3, 224, 224)),
    "DenseNet121, 3-D": (lambda: nets.DenseNet121(spatial_dims=3, in_channels=1, out_channels=4), (1, 48, 48, 48)),
}


def of_session(content: bytes, threads: int) -> Infer:
    """A new session of ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(session.run(None, {"image": images})[0])


def of_torch(network: nn.Module) -> Infer:
    """The network itself."""

    def infer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return network(torch.from_numpy(images)).numpy().copy()

    return infer


def compare(truth: NDArray[np.float32], found: NDArray[np.float32]) -> dict[str, float]:
    """Images with any other bit, and the largest difference over the largest logit."""
    return {
        "images": int((truth != found).any(axis=1).sum()),
        "relative": float(np.abs(truth - found).max() / np.abs(truth).max()),
    }


def in_batches(infer: Infer, images: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    """All logits, `batch` images a call."""
    return np.concatenate([infer(images[start : start + batch]) for start in range(0, len(images), batch)])


def measure(infer: Infer, again: Infer, images: NDArray[np.float32]) -> dict[str, Any]:
    """What differs from one image a call; `again` is another session of the same."""
    truth = in_batches(infer, images, 1)
    found = {str(batch): compare(truth, in_batches(infer, images, batch)) for batch in BATCHES}
    eight = in_batches(infer, images, 8)
    found["8, a second time"] = compare(eight, in_batches(infer, images, 8))
    found["1, another session"] = compare(truth, in_batches(again, images, 1))
    return found


def main() -> None:
    """Measure every network and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/batches.json"))
    parser.add_argument("--only", default="", help="Networks whose name begins so.")
    given = parser.parse_args()
    out, found = given.out, dict[str, Any]()
    for name, (make, shape) in NETWORKS.items():
        if not name.startswith(given.only):
            continue
        torch.manual_seed(0)
        network = make().eval()
        content = export_onnx(network, shape)
        images = np.random.default_rng(0).normal(size=(IMAGES, *shape)).astype(np.float32)
        found[name] = {}
        for threads in (1, 2):
            found[name][f"onnxruntime, {threads} threads"] = measure(
                of_session(content, threads), of_session(content, threads), images
            )
        torch.set_num_threads(1)
        found[name]["torch, 1 thread"] = measure(of_torch(network), of_torch(network), images)
        print(name, found[name], flush=True)
    facts = machine_facts()
    facts["versions"]["torch"] = torch.__version__
    durable.write_json(out, {"conditions": facts, "images": IMAGES, "networks": found})


if __name__ == "__main__":
    main()
