"""The path of someone who has an ONNX file and nothing else: a VGG16 in the style of a Keras export, in and out.

    python benchmarks/onnx_only.py --data DIR --out results

The trained VGG16's graph is given a channels-last input, a Transpose and a Softmax, under Keras's names. Then only
commands: import, compress to --ratio times fewer milliseconds, export --dropin. Both files run in ONNX Runtime on the
test split from the same feeds, and are timed in turn on one thread. Ends in OUT/onnx-only.json.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brain_mri
import compress
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from hscc_edge import durable
from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.cli.demo import Steps
from hscc_edge.cli.output import Output
from hscc_edge.data.cohort import read_cohort
from hscc_edge.model.head import Head, kl, parse_head
from hscc_edge.validate.latency import race
from hscc_edge.validate.machine import machine_facts

INPUT, OUTPUT = "input_1", "predictions"


def main() -> None:
    """Make the file, run the commands, measure both."""
    parser = brain_mri.parser(__doc__)
    parser.add_argument("--network", default="vgg16", help="a recipe calibration/recipes/brain-mri-NETWORK.toml")
    parser.add_argument("--ratio", type=float, default=3.0, help="how many times fewer milliseconds")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing both files in turn")
    arguments = parser.parse_args()
    cohort, dense = brain_mri.prepare(arguments.data, arguments.cache, arguments.network)
    trained, steps = read_bundle(dense), Steps(Output())
    out = arguments.out / f"onnx-only-{arguments.network}"
    out.mkdir(parents=True, exist_ok=True)
    model, recipe, dropin = out / "model.onnx", out / "site.toml", out / "small.onnx"
    onnx.save(channels_last(trained), model)
    recipe.write_text(site_recipe(trained, (brain_mri.RECIPES / f"brain-mri-{arguments.network}.toml").read_text()))
    dropin.unlink(missing_ok=True)
    steps.run("import", "import", model, "--recipe", recipe, "--out", out / "dense", "--overwrite")
    budget = f"latency={arguments.ratio:g}x"
    steps.run("compress", "compress", out / "dense", "--cohort", cohort, "--budget", budget, "--out", out / "small",
              "--overwrite")  # fmt: skip
    steps.run("export", "export", out / "small", "--dropin", dropin)
    images = compress.test_images(cohort, trained.root, out)
    labels = [trained.spec.labels.index(item.label) for item in read_cohort(cohort).select("test").instances]
    durable.write_json(out / "onnx-only.json", {
        **machine_facts(), "network": arguments.network, "budget": budget, "test_images": len(images),
        **measured(model, dropin, images, np.array(labels), parse_head(trained.spec.head), arguments.seconds),
    })  # fmt: skip


def channels_last(bundle: Bundle) -> onnx.ModelProto:
    """The bundle's graph behind a Transpose and before a Softmax, with Keras's names and a batch of any size."""
    model = onnx.load(bundle.path("models/model.onnx"))
    graph = model.graph
    channels, height, width = bundle.spec.input_shape
    before = helper.make_node("Transpose", [INPUT], [graph.input[0].name], name="transpose", perm=[0, 3, 1, 2])
    after = helper.make_node("Softmax", [graph.output[0].name], [OUTPUT], name="softmax", axis=-1)
    nodes = [before, *graph.node, after]
    given = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", height, width, channels])
    told = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", len(bundle.spec.labels)])
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.input.append(given)
    graph.output.append(told)
    onnx.checker.check_model(model)
    return model


def site_recipe(bundle: Bundle, recipe: str) -> str:
    """The training recipe without network and training, with what the cohort had told."""
    left = re.sub(r"^\[(network|train)\]\n(?:(?!\[).*\n)*", "", recipe, flags=re.MULTILINE)
    labels = ", ".join(f'"{label}"' for label in bundle.spec.labels)
    return f'labels = [{labels}]\nhead = "softmax"\n{left}'


@dataclass(frozen=True, slots=True)
class File:
    """A Keras-style file as a runtime: images (B, C, H, W) go in as it wants them, one thread."""

    session: onnxruntime.InferenceSession

    def infer(self, images: Any) -> Any:
        """(B, n) probabilities."""
        feed = {INPUT: np.ascontiguousarray(images.transpose(0, 2, 3, 1))}
        return self.session.run([OUTPUT], feed)[0]


def measured(model: Path, dropin: Path, images: Any, labels: Any, head: Head, seconds: float) -> dict[str, Any]:
    """Accuracy, KL, bytes, and milliseconds at batch 1 in turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    dense, small = (
        File(onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
        for path in (model, dropin)
    )
    before, after = (
        np.concatenate([file.infer(image[None]) for image in images]).astype(np.float64) for file in (dense, small)
    )
    floor = np.finfo(np.float32).tiny
    divergence = kl(head, *(np.log(np.maximum(answers, floor)) for answers in (before, after)))
    timed = race(dense, small, list(images[:8]), seconds)
    return {
        "dense_accuracy": float((before.argmax(1) == labels).mean()),
        "accuracy": float((after.argmax(1) == labels).mean()), "kl": float(divergence.mean()),
        "dense_bytes": model.stat().st_size, "bytes": dropin.stat().st_size,
        "dense_ms": timed.reference.p50_ms, "ms": timed.candidate.p50_ms,
        "speedup": timed.speedup, "speedup_low": timed.low, "speedup_high": timed.high,
    }  # fmt: skip


if __name__ == "__main__":
    main()
