"""A hospital's own model becomes a dense bundle; nothing is written unless it does what the recipe says."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hscc_edge.bundle import SOURCE, WEIGHTS, Bundle, Spec, write_bundle
from hscc_edge.errors import ConfigError, ModelError, extra
from hscc_edge.model.foreign import NAME, Foreign, as_given, layout_of
from hscc_edge.model.head import Head, parse_head
from hscc_edge.model.load import fresh_network, weights_of
from hscc_edge.model.onnx_import import Imported, translate
from hscc_edge.model.onnx_parity import Arrays, check_source, open_session, require_equal, run_onnx, run_torch
from hscc_edge.model.onnx_source import Source, read_source
from hscc_edge.model.recipe import Recipe
from hscc_edge.model.skeleton import skeleton
from hscc_edge.model.sources import Opened, open_source

with extra("workstation"):
    import onnx
    import torch
    from safetensors.torch import load

ACTIVATIONS = {"softmax": ("", "softmax"), "sigmoid": ("", "sigmoid"), "single_logit": ("", "sigmoid")}
"""By head, what a model may do to its logits at the end."""
Images = NDArray[np.float32]


def adopt(source: str, recipe: Recipe, out: Path, weights: Path | None = None, *, replace: bool = False) -> Bundle:
    """Import a model and write its bundle; no cohort is read.

    The network is run on a black image and on noise: under ONNX Runtime, as imported, and as what it was before. Time
    grows with its size; memory holds its weights about four times.

    Args:
        source: as for `open_source`.
        recipe: names the labels in the order of the logits, and a coded finding for each.

    Raises:
        ConfigError: if the recipe lacks a label's finding, or its labels, head or preprocess are not the model's.
        InputError: if the source or its weights are missing.
        ModelError: if the model cannot be read, traced or rebuilt, gives logits that are not finite, or does not look
            at its image.
    """
    head = _head(recipe)
    spec = _spec(recipe, head)
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        opened = open_source(source, spec.input_shape, scratch, recipe.network["args"], weights)
        graph = read_source(opened.path)
        layout = _layout(graph, spec)
        examples = _examples(spec.input_shape)
        given = [(as_given(images, graph.inputs[0], layout),) for images in examples]
        _require_answers(opened, graph, head, given)
        imported = translate(graph, given[-1])
        check_source(graph, imported.network, given)
        spec = _told(spec, opened, imported, layout)
        files = _files(opened.path, Foreign(imported.network, layout), examples[-1], spec, scratch)
    return write_bundle(out, spec, files, replace=replace)


def _head(recipe: Recipe) -> Head:
    if not recipe.labels:
        raise ConfigError(
            f'the recipe {recipe.name} names no labels: add labels = ["...", "..."] above its tables, in the order of '
            "the model's outputs"
        )
    return parse_head({"kind": recipe.head, "labels": recipe.labels})


def _spec(recipe: Recipe, head: Head) -> Spec:
    if missing := [label for label in head.labels if label not in recipe.findings]:
        raise ConfigError(f"the label '{missing[0]}' has no coded finding: add [findings.{missing[0]}] to the recipe")
    return Spec(
        name=recipe.name,
        version=1,
        network={"name": NAME, "args": {}},
        preprocess=recipe.preprocess.to_json(),
        decision=recipe.decision.to_json(),
        head={"kind": head.kind, "labels": list(head.labels)},
        findings={label: recipe.findings[label] for label in head.labels},
        site=recipe.site,
        procedure=recipe.procedure,
    )


def _told(spec: Spec, opened: Opened, imported: Imported, layout: str) -> Spec:
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in opened.files}
    facts = {"imported": opened.kind, "files": digests, "tail": imported.tail[0], "torch": torch.__version__}
    return dataclasses.replace(spec, network={"name": NAME, "args": {"layout": layout}}, training=facts)


def _layout(graph: Source, spec: Spec) -> str:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError(
            f"the model has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs: a bundle holds a classifier "
            "of one image with one output; export that part of it, or compress it through hscc_edge.compress in Python"
        )
    port = graph.inputs[0]
    if port.dtype not in ("float32", "float16"):
        raise ModelError(
            f"the model's input {port.name} is of {port.dtype}: expected float32 or float16, which the recipe's "
            "preprocess gives; export it with a float input"
        )
    return layout_of(port, spec.input_shape)


def _examples(shape: tuple[int, ...]) -> tuple[Images, Images]:
    """A black image, and two of noise."""
    noise = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    return np.zeros((1, *shape), np.float32), noise


def _require_answers(opened: Opened, graph: Source, head: Head, given: Sequence[Arrays]) -> None:
    """Run the model as it came, and refuse answers that do not fit what the recipe says of it."""
    session = open_session(str(opened.path))
    answers = [run_onnx(session, arrays) for arrays in given]
    for answer, arrays, name in zip(answers, given, ("black image", "image of noise"), strict=True):
        _require_answer(answer[0], len(arrays[0]), name, head)
    if np.array_equal(answers[0][0][0], answers[1][0][0]):
        raise ModelError(
            "the model gives a black image and noise the very same logits, so that it does not look at its image: give "
            "its trained weights"
        )
    if graph.tail[0] not in ACTIVATIONS[head.kind]:
        raise ConfigError(
            f"the model ends in a {graph.tail[0]}, the recipe's head is {head.kind!r}: expected one that fits, such as "
            f"head = {'softmax' if graph.tail[0] == 'softmax' else 'sigmoid'!r}"
        )
    if opened.original is not None:
        for arrays, answer in zip(given, answers, strict=True):
            require_equal(answer, run_torch(opened.original, arrays), "the model's before torch exported it")


def _require_answer(answer: NDArray[Any], images: int, name: str, head: Head) -> None:
    logits = 1 if head.kind == "single_logit" else len(head.labels)
    found = answer.size // max(images, 1) if answer.shape[:1] == (images,) else 0
    if found != logits:
        raise ConfigError(
            f"the model gives {images} images an output of shape {answer.shape}: the recipe's {head.kind} head with "
            f"{len(head.labels)} labels needs ({images}, {logits}); mend labels or head"
        )
    if not np.isfinite(answer).all():
        raise ModelError(f"the model gives a {name} an output that is not finite: give its trained, finite weights")


def _files(path: Path, network: Foreign, images: Images, spec: Spec, scratch: Path) -> dict[str, bytes]:
    """The weights and the graph without them; the whole graph if that does not give the same network."""
    weights, expected = weights_of(network), run_torch(network, (images,))
    bare = scratch / "skeleton.onnx"
    bare.write_bytes(skeleton(path))
    for graph in (bare, path):
        rebuilt = fresh_network(spec, graph).eval()
        try:
            rebuilt.load_state_dict(load(weights))
        except RuntimeError:
            continue
        if np.array_equal(run_torch(rebuilt, (images,))[0], expected[0]):
            return {WEIGHTS: weights, SOURCE: onnx.load(graph).SerializeToString(deterministic=True)}
    raise ModelError("the network cannot be rebuilt from its graph and weights: export the model in another way")
