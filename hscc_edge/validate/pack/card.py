"""The model card: Hugging Face's sections as Markdown; the Model Card Toolkit's fields, MONAI's metadata as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hscc_edge.validate.pack import words
from hscc_edge.validate.pack.contents import Contents
from hscc_edge.validate.pack.site import TO_FILL

SCHEMA = "0.0.2"


def metrics(contents: Contents) -> list[dict[str, Any]]:
    """Accuracy, sensitivity and specificity of the compressed classifier with their intervals, off the validation."""
    found = contents.one("validation")
    if not isinstance(found, dict):
        return []
    figures = found["candidate_figures"]
    shares = [("accuracy", "all", figures.get("accuracy"))]
    for row in figures.get("classes", ()):
        shares += [(name, row["label"], row.get(name)) for name in ("sensitivity", "specificity")]
    return [_metric(name, part, share) for name, part, share in shares if share and share.get("value") is not None]


def _metric(name: str, part: str, share: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": name,
        "slice": part,
        "value": f"{share['value']:.4f}",
        "confidence_interval": {"lower_bound": f"{share['low']:.4f}", "upper_bound": f"{share['high']:.4f}"},
    }


def to_json(contents: Contents) -> dict[str, Any]:
    """The Model Card Toolkit's fields (schema 0.0.2); MONAI's metadata as it stands in the bundle."""
    spec, say = contents.bundle.spec, contents.site.say
    return {
        "schema_version": SCHEMA,
        "model_details": {
            "name": spec.name,
            "overview": words.summary(contents.bundle),
            "owners": [{"name": say("owner"), "contact": say("contact")}],
            "version": {"name": str(spec.version), "diff": f"sha256 {contents.bundle.digest}"},
            "licenses": [{"custom_text": contents.site.card.get("licence", "see LICENSE in the bundle")}],
            "citations": [{"citation": say("citation")}],
        },
        "model_parameters": {
            "model_architecture": str(spec.network["name"]),
            "data": [{"name": name, "link": text} for name, text in _data(contents)],
            "input_format": f"{_shape(contents)} float32, after {_steps(spec.preprocess)}",
            "output_format": f"{spec.head['kind']}: {', '.join(spec.labels)}",
        },
        "quantitative_analysis": {"performance_metrics": metrics(contents)},
        "considerations": {
            "users": [{"description": say("users")}],
            "use_cases": [{"description": say("intended_use")}, {"description": f"not for: {say('out_of_scope')}"}],
            "limitations": [{"description": say("limitations")}, {"description": "It is no medical device."}],
            "ethical_considerations": [{"name": say("risks"), "mitigation_strategy": TO_FILL}],
        },
        "monai_metadata": json.loads(contents.bundle.path("configs/metadata.json").read_bytes()),
    }


def to_markdown(contents: Contents) -> str:
    """Hugging Face's template: its front matter and section names."""
    spec, say = contents.bundle.spec, contents.site.say
    sections = {
        "Model Details": "",
        "Model Description": f"{words.summary(contents.bundle)}\n\n- **Developed by:** {say('owner')}\n"
        f"- **Model type:** {spec.network['name']}, {spec.head['kind']} over {', '.join(spec.labels)}\n"
        f"- **Version:** {spec.version}, sha256 {contents.bundle.digest}\n- **License:** {say('licence')}\n"
        f"- **Compressed from:** {spec.parent or 'not compressed'}",
        "Uses": "",
        "Direct Use": say("intended_use"),
        "Downstream Use": f"Users: {say('users')}",
        "Out-of-Scope Use": f"{say('out_of_scope')}\n\nIt is no medical device.",
        "Bias, Risks, and Limitations": f"{say('limitations')}\n\n{say('risks')}",
        "How to Get Started with the Model": "`hscc-edge verify BUNDLE`, then `hscc-edge serve serve.toml`",
        "Training Details": "",
        "Training Data": "\n".join(f"- {name}: {text}" for name, text in _data(contents)) or TO_FILL,
        "Training Procedure": f"Preprocessing: {_steps(spec.preprocess)}",
        "Evaluation": _evaluation(contents),
        "Environmental Impact": "not measured",
        "Technical Specifications": f"Input {_shape(contents)}, one decision a {spec.decision.get('unit')}",
        "Citation": say("citation"),
        "Model Card Contact": say("contact"),
    }  # fmt: skip
    deeper = (
        "Model Description",
        "Direct Use",
        "Downstream Use",
        "Out-of-Scope Use",
        "Training Data",
        "Training Procedure",
    )
    body = [f"{'###' if name in deeper else '##'} {name}\n\n{text}".rstrip() for name, text in sections.items()]
    return "\n\n".join([_front(contents), f"# Model Card for {spec.name}", *body]) + "\n"


def _front(contents: Contents) -> str:
    licence = contents.site.card.get("licence", "other")
    lines = [f"license: {json.dumps(licence)}", "library_name: hscc-edge", "pipeline_tag: image-classification",
             "tags: [medical, DICOM, compressed]"]  # fmt: skip
    return "\n".join(["---", *lines, "---"])


def _evaluation(contents: Contents) -> str:
    rows = [
        f"| {item['type']} | {item['slice']} | {item['value']} | {item['confidence_interval']['lower_bound']} to "
        f"{item['confidence_interval']['upper_bound']} |"
        for item in metrics(contents)
    ]
    if not rows:
        return "not run"
    return "\n".join(["| metric | class | value | 95 % interval |", "| --- | --- | --- | --- |", *rows])


def _data(contents: Contents) -> list[tuple[str, str]]:
    spec = contents.bundle.spec
    found = [("training", contents.site.say("training_data"))]
    if spec.calibration:
        found.append(
            ("calibration", f"{spec.calibration.get('images')} images, cohort {spec.calibration.get('cohort')}")
        )
    return found


def _shape(contents: Contents) -> str:
    return " x ".join(map(str, contents.bundle.spec.input_shape))


def _steps(steps: list[dict[str, Any]]) -> str:
    return ", ".join(str(step["name"]) for step in steps)
