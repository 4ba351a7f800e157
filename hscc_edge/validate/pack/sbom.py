"""Software bills of materials, CycloneDX 1.6 JSON: of the bundle (models, data), of the device's Python packages."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

import hscc_edge
from hscc_edge.bundle import SOURCE, WEIGHTS, Bundle
from hscc_edge.errors import InputError, extra
from hscc_edge.validate.pack.packages import OWN, dependencies, needed

with extra("workstation"):
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from packageurl import PackageURL

PREFIX = "hscc-edge:"
NAMESPACE = uuid.UUID("6f0c2e1a-7a0e-5e0f-9d53-3a1d6a1f5c11")
UNLISTED = (
    "TensorRT, CUDA and cuDNN: from JetPack, not in this SBOM",
    "Linux for Tegra, its kernel and drivers: from JetPack, not in this SBOM",
    "Debian packages of the image: not in this SBOM; dpkg-query -W on the device lists them",
    "Shared libraries inside wheels: listed with their wheel, not by themselves",
)
MEANINGS = {
    WEIGHTS: "weights",
    SOURCE: "graph of the imported network, without weights",
    "models/model.onnx": "ONNX graph, FP32",
    "models/model.fp16.onnx": "ONNX graph, FP16",
    "models/model.int8.onnx": "ONNX graph, INT8",
}


def bundle_sbom(bundle: Bundle, timestamp: str) -> str:
    """Models with their digests, the data that they were made from, and the parent, as CycloneDX JSON."""
    spec, root = bundle.spec, _bundle_component(bundle)
    files = [_file(name, digest) for name, digest in sorted(bundle.files.items())]
    bom = Bom(components=[*files, *_data(bundle), *_parent(bundle)], metadata=BomMetaData(component=root))
    bom.register_dependency(root, [item for item in bom.components])
    licence = "licence: as the bundle's LICENSE says"
    bom.metadata.properties.add(Property(name=f"{PREFIX}note", value=licence))
    return _write(bom, f"bundle {bundle.digest} {spec.name}", timestamp)


def device_sbom(packages: Mapping[str, Any], recorded: bool, timestamp: str) -> str:
    """The Python packages of the device as CycloneDX JSON.

    Args:
        packages: an inventory, of the device if `recorded`; else of the machine that makes the pack, which is said, and
            cut down to what the device extra needs.
    """
    wanted = needed(packages, "device")
    listed = packages["packages"] if recorded else [item for item in packages["packages"] if item["name"] in wanted]
    made = {str(item["name"]): _package(item, str(item["name"]) in wanted) for item in listed}
    own = made.pop(OWN, None) or Component(name=OWN, version=hscc_edge.__version__, bom_ref=OWN)
    own.type = ComponentType.APPLICATION
    bom = Bom(components=made.values(), metadata=BomMetaData(component=own))
    direct = [made[name] for name in wanted if name in made]
    bom.register_dependency(own, direct)
    for item in listed:
        if item["name"] in made:
            below = [made[name] for name in dependencies(item, set(made))]
            bom.register_dependency(made[str(item["name"])], below)
    _remark(bom, _source(packages, recorded))
    return _write(bom, json.dumps(packages, sort_keys=True) + str(recorded), timestamp)


def _source(packages: Mapping[str, Any], recorded: bool) -> str:
    where = f"Python {packages['python']}, {packages['system']} {packages['machine']}"
    if recorded:
        return f"recorded on the device: {where}"
    return f"of the machine that made the pack, not of the device ({where}): record it there with hscc-edge packages"


def _remark(bom: Bom, source: str) -> None:
    bom.metadata.properties.add(Property(name=f"{PREFIX}source", value=source))
    for number, text in enumerate(UNLISTED):
        bom.metadata.properties.add(Property(name=f"{PREFIX}not-listed:{number}", value=text))


def _bundle_component(bundle: Bundle) -> Component:
    spec = bundle.spec
    plan = spec.plan
    method = "dense" if plan is None else f"{plan['method']}, {plan['budget']}"
    return Component(
        name=spec.name,
        version=str(spec.version),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"bundle:{bundle.digest}",
        description=f"{spec.network['name']}, {method}; {len(spec.labels)} classes: {', '.join(spec.labels)}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=bundle.digest)],
        properties=[Property(name=f"{PREFIX}hash-is-of", value="manifest.json, which holds the digest of every file")],
    )


def _file(name: str, digest: str) -> Component:
    model = name.startswith("models/")
    return Component(
        name=name,
        type=ComponentType.MACHINE_LEARNING_MODEL if model else ComponentType.FILE,
        bom_ref=f"file:{name}",
        description=MEANINGS.get(name),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
    )


def _data(bundle: Bundle) -> Iterable[Component]:
    for role, facts in (("training", bundle.spec.training), ("calibration", bundle.spec.calibration or {})):
        digest = facts.get("cohort")
        if isinstance(digest, str):
            yield Component(
                name=f"{role} cohort",
                type=ComponentType.DATA,
                bom_ref=f"data:{role}",
                description=f"{facts['images']} images" if "images" in facts else None,
                properties=[Property(name=f"{PREFIX}cohort-digest", value=digest)],
            )


def _parent(bundle: Bundle) -> Iterable[Component]:
    if bundle.spec.parent is not None:
        yield Component(
            name="parent bundle",
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref="parent",
            description="the bundle that this one was compressed from",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=bundle.spec.parent)],
        )


def _package(item: Mapping[str, Any], wanted: bool) -> Component:
    name, version = str(item["name"]), str(item["version"])
    properties = [Property(name=f"{PREFIX}needed-by-device-extra", value=str(wanted).lower())]
    if item["record_sha256"]:
        properties.append(Property(name=f"{PREFIX}record-sha256", value=item["record_sha256"]))
    archive = item["archive_sha256"]
    return Component(
        name=name,
        version=version,
        bom_ref=name,
        purl=PackageURL(type="pypi", name=name, version=version),
        licenses=[LicenseFactory().make_from_string(item["licence"])] if item["licence"] else None,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=archive)] if archive else None,
        properties=properties,
    )


def _write(bom: Bom, identity: str, timestamp: str) -> str:
    """JSON whose serial number follows from its content; validated against CycloneDX's own schema.

    Raises:
        InputError: if it does not fit the schema.
    """
    bom.serial_number = uuid.uuid5(NAMESPACE, f"{identity} {timestamp}")
    bom.metadata.timestamp = datetime.datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    bom.metadata.tools.components.add(
        Component(name=OWN, version=hscc_edge.__version__, type=ComponentType.APPLICATION, bom_ref="tool:hscc-edge")
    )
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    if fault := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise InputError(f"the SBOM does not fit CycloneDX 1.6 ({fault}): report this with the bundle's metadata")
    return text + "\n"
