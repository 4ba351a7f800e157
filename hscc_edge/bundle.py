"""The bundle: one directory, readable by MONAI's tools, that is also the unit of deployment.

    LICENSE  manifest.json (sha256 of every other file)
    configs/{metadata,inference,hscc}.json
    models/{model.safetensors,model.onnx,model.fp16.onnx,model.int8.onnx}  reports/
    models/source.onnx, if the network was imported: its graph without the weights
    signatures/, not in the manifest, since they sign it: docs/evidence.md

`configs/hscc.json` is the `Spec`. The bundle's digest is the sha256 of `manifest.json`, hence of everything in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.data.preprocess import parse_preprocess
from hscc_edge.digest import sha256_of
from hscc_edge.errors import BundleError

SCHEMA = 1
WEIGHTS = "models/model.safetensors"
SOURCE = "models/source.onnx"
LICENSE_TEXT = (
    "The weights belong to whoever trained them; no licence is granted by this file.\n"
    "Replace it by the licence of the model before passing the bundle on.\n"
)
MISSING_FILE = {
    "models/model.onnx": "run hscc-edge export first",
    "models/model.fp16.onnx": "run hscc-edge export --precision fp16 first",
    "models/model.int8.onnx": "run hscc-edge export --precision int8 first",
}


@dataclass(frozen=True, slots=True)
class Code:
    """A coded triplet (PS3.3 section 8.8): what a finding, a site or a procedure is called in a report."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Spec:
    """What a bundle declares about its classifier.

    Attributes:
        network: `{"name": a zoo or MONAI network, "args": {...}}`; the name "onnx" stands for an imported one.
        plan: the compression plan as JSON, None for a dense network.
        preprocess: named steps of `hscc_edge.data.preprocess`.
        decision: unit, aggregate, k and minimum_images of `hscc_edge.model.decision`.
        head: kind and labels of `hscc_edge.model.head`.
        findings: label -> coded finding of the report.
        calibration: digest and size of the calibration cohort, None if there was none.
        parent: digest of the bundle that this one was made from.
    """

    name: str
    version: int
    network: dict[str, Any]
    preprocess: list[dict[str, Any]]
    decision: dict[str, Any]
    head: dict[str, Any]
    findings: dict[str, Code]
    site: Code
    procedure: Code
    plan: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    parent: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names, in the order of the logits."""
        return tuple(self.head["labels"])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one preprocessed image, (C, D, H, W) of a volume."""
        return parse_preprocess(self.preprocess).shape


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk whose digests were checked."""

    root: Path
    spec: Spec
    digest: str
    files: Mapping[str, str]

    def path(self, name: str) -> Path:
        """The path of one of the bundle's own files.

        Raises:
            BundleError: if the manifest does not list it.
        """
        if name not in self.files:
            hint = MISSING_FILE.get(name, "make the bundle anew")
            raise BundleError(f"the bundle {self.root} holds no {name}: {hint}")
        return self.root / name


def read_bundle(root: Path, *, verify: bool = True) -> Bundle:
    """Open a bundle and check every digest in its manifest; cost grows with its bytes.

    Raises:
        BundleError: if `root` is no bundle, a file is missing or altered, or the spec is malformed.
    """
    manifest = root / "manifest.json"
    if not manifest.is_file():
        raise BundleError(
            f"{root} is not a bundle: it has no manifest.json; give a directory made by hscc-edge train, import or "
            "compress"
        )
    content = manifest.read_bytes()
    files = _parse_json(content, manifest).get("files")
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
        raise BundleError(
            f"{manifest} lists no files: expected an object 'files' of name and sha256; make the bundle anew"
        )
    for name, digest in files.items() if verify else ():
        _check_file(root, name, digest)
    if "configs/hscc.json" not in files:
        raise BundleError(f"{manifest} does not list configs/hscc.json: make the bundle anew")
    spec = _parse_spec(_parse_json((root / "configs/hscc.json").read_bytes(), root / "configs/hscc.json"), root)
    return Bundle(root, spec, hashlib.sha256(content).hexdigest(), files)


def write_bundle(out: Path, spec: Spec, files: Mapping[str, bytes], *, replace: bool = False) -> Bundle:
    """Write a new bundle; nothing appears at `out` unless all of it does.

    Args:
        files: name inside the bundle -> content; `models/model.safetensors` among them.

    Raises:
        StorageError: if `out` is taken (unless `replace`) or cannot be written.
    """
    own = {
        "LICENSE": LICENSE_TEXT.encode(),
        "configs/hscc.json": _dump({"schema": SCHEMA, **dataclasses.asdict(spec)}),
        "configs/metadata.json": _dump(_monai_metadata(spec)),
        "configs/inference.json": _dump(_monai_inference()),
    }
    with durable.new_directory(out, replace=replace) as draft:
        _fill(draft, {**own, **files}, {})
    return read_bundle(out, verify=False)


def carried(bundle: Bundle) -> dict[str, bytes]:
    """What a bundle made from this one must hold as well, for its network to be rebuilt."""
    return {name: bundle.path(name).read_bytes() for name in (SOURCE,) if name in bundle.files}


def add_files(bundle: Bundle, files: Mapping[str, bytes]) -> Bundle:
    """Add or replace files of a bundle in one step; the others are linked, not copied."""
    with durable.new_directory(bundle.root, replace=True) as draft:
        kept = {name: digest for name, digest in bundle.files.items() if name not in files}
        for name in kept:
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(bundle.root / name, draft / name)
        _fill(draft, files, kept)
    return read_bundle(bundle.root, verify=False)


def rewrite(bundle: Bundle, files: Mapping[str, bytes], **changes: Any) -> Bundle:
    """Change fields of a bundle's spec in place and add files, in one step; its version rises by one."""
    spec = dataclasses.replace(bundle.spec, version=bundle.spec.version + 1, **changes)
    own = {
        "configs/hscc.json": _dump({"schema": SCHEMA, **dataclasses.asdict(spec)}),
        "configs/metadata.json": _dump(_monai_metadata(spec)),
    }
    return add_files(bundle, {**own, **files})


def _fill(draft: Path, files: Mapping[str, bytes], kept: Mapping[str, str]) -> None:
    digests = dict(kept)
    for name, content in files.items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    (draft / "manifest.json").write_bytes(_dump({"files": dict(sorted(digests.items()))}))


def _check_file(root: Path, name: str, digest: str) -> None:
    path = root / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise BundleError(f"the manifest of {root} names a file outside it ({name}): do not use this bundle")
    if not path.is_file():
        raise BundleError(f"the bundle {root} lacks {name}, which its manifest lists: copy it again or make it anew")
    with path.open("rb") as file:
        found = sha256_of(file)
    if found != digest:
        raise BundleError(
            f"{name} in the bundle {root} was altered: its sha256 is {found[:12]}..., the manifest says "
            f"{digest[:12]}...; copy the bundle again or make it anew"
        )


def _parse_json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}): make the bundle anew") from error
    if not isinstance(parsed, dict):
        raise BundleError(f"{path} holds no JSON object: make the bundle anew")
    return parsed


def _parse_spec(raw: dict[str, Any], root: Path) -> Spec:
    if raw.pop("schema", None) != SCHEMA:
        raise BundleError(f"the bundle {root} has another schema than {SCHEMA}: make it anew with this version")
    known = {item.name for item in dataclasses.fields(Spec)}
    if unknown := sorted(raw.keys() - known):
        raise BundleError(
            f"configs/hscc.json of {root} has the unknown key '{unknown[0]}': expected one of {sorted(known)}"
        )
    try:
        raw["findings"] = {label: Code(**code) for label, code in raw["findings"].items()}
        raw["site"], raw["procedure"] = Code(**raw["site"]), Code(**raw["procedure"])
        return Spec(**raw)
    except (KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"configs/hscc.json of {root} is malformed ({error}): make the bundle anew") from error


def _dump(content: object) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _monai_metadata(spec: Spec) -> dict[str, Any]:
    """metadata.json of the MONAI bundle specification."""
    channels, *sides = spec.input_shape
    image = {
        "type": "image",
        "format": "magnitude",
        "modality": "n/a",
        "num_channels": channels,
        "spatial_shape": sides,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(index): "image" for index in range(channels)},
    }
    logits = {
        "type": "probabilities",
        "format": "classes",
        "num_channels": len(spec.labels),
        "spatial_shape": [],
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": False,
        "channel_def": {str(index): label for index, label in enumerate(spec.labels)},
    }
    return {
        "version": f"0.0.{spec.version}",
        "changelog": {f"0.0.{spec.version}": "written by hscc_edge"},
        "monai_version": _installed("monai"),
        "pytorch_version": _installed("torch").partition("+")[0],
        "numpy_version": _installed("numpy"),
        "required_packages_version": {
            "hscc-edge": _installed("hscc-edge"),
            "safetensors": _installed("safetensors"),
        },
        "name": spec.name,
        "task": "classification",
        "description": f"{spec.network['name']}, {'dense' if spec.plan is None else 'compressed'}",
        "authors": "see provenance in configs/hscc.json",
        "copyright": "see LICENSE",
        "intended_use": "not a medical device; for evaluation by the site that trained it",
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": logits}},
    }


def _monai_inference() -> dict[str, Any]:
    return {
        "imports": ["$from pathlib import Path"],
        "bundle_root": ".",
        "network_def": {"_target_": "hscc_edge.model.load.network_of", "root": "$Path(@bundle_root)"},
    }
