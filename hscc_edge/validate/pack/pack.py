"""The pack on disk: page and PDF, documents, figures with their data, the records themselves, a manifest of it all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hscc_edge
from hscc_edge import durable
from hscc_edge.data import page
from hscc_edge.errors import BundleError, extra
from hscc_edge.validate.pack import card, change, checklist, record, sbom, words
from hscc_edge.validate.pack.contents import Contents
from hscc_edge.validate.pack.pdf import to_pdf
from hscc_edge.validate.pack.recording import KINDS
from hscc_edge.validate.pack.section import Section, Table, section, table_of
from hscc_edge.validate.pack.signature import MANIFEST, check_signature, read_signature, signature_files
from hscc_edge.validate.pack.verify import canonical

with extra("workstation"):
    from markupsafe import Markup

SCHEMA = 1
SHORT = 16
NO_GATE = "No gate was run: nothing here says that the classifier may be used."


@dataclass(frozen=True, slots=True)
class Pack:
    """What was written.

    Attributes:
        manifest: sha256 of the manifest, which identifies the pack.
        verdicts: verdict -> rows of the verification record.
    """

    root: Path
    manifest: str
    files: int
    verdicts: Mapping[str, int]
    not_run: tuple[str, ...]
    conclusion: str


def write_pack(contents: Contents, out: Path, *, replace: bool = False, pdf: bool = True) -> Pack:
    """Render everything into a new directory, whole or not at all; `pdf` for the page as a PDF as well.

    Raises:
        StorageError: if `out` is taken (unless `replace`) or cannot be written.
        InputError: if a record is not what this version writes.
    """
    signed = bundle_signatures(contents)
    rows = record.rows(contents)
    if signed:
        rows = [*rows, _signed_row(contents, signed)]
    sections = [section(item) for item in contents.recordings if item.kind not in ("lock", "uses", "packages")]
    documents = _documents(contents, rows, signed)
    html = _page(contents, rows, sections, signed, documents)
    files = {
        **{name: content.encode() for name, content in documents.items()},
        **{item.name: item.raw for item in contents.recordings},
        **_figures(sections, contents),
        f"bundle/{MANIFEST}": (contents.bundle.root / MANIFEST).read_bytes(),
        **{f"bundle/signatures/{path.name}": path.read_bytes() for path in signature_files(contents.bundle.root)},
        "index.html": html.encode(),
    }
    if pdf:
        files["report.pdf"] = to_pdf(html)
    files["pack.json"] = _json(_facts(contents, rows)).encode()
    manifest = _write(out, files, replace)
    conclusion = _conclusion(rows, sections)
    return Pack(out, manifest, len(files), _counts(rows), tuple(contents.missing), conclusion)


def bundle_signatures(contents: Contents) -> list[dict[str, Any]]:
    """The signatures that stand in the bundle.

    Raises:
        BundleError: if one does not hold.
    """
    found = []
    for path in signature_files(contents.bundle.root):
        try:
            signature = read_signature(path.read_bytes())
            check_signature(signature, contents.bundle.digest)
        except BundleError as error:
            raise BundleError(f"the signature {path} {error}") from error
        found.append({**asdict(signature), "key_id": signature.key_id})
    return found


def _documents(contents: Contents, rows: list[record.Row], signed: list[dict[str, Any]]) -> dict[str, str]:
    verdicts = {row.id: row.verdict for row in rows}
    return {
        "verification.json": _json({**record.to_json(contents, signed), "rows": [asdict(row) for row in rows]}),
        "verification.csv": record.to_csv(rows),
        "checklists.json": _json([asdict(item) for item in checklist.checklists(contents)]),
        "plan.json": _json({"summary": words.summary(contents.bundle),
                            "layers": [asdict(layer) for layer in words.layers(contents.bundle)]}),
        "change.json": _json(asdict(change.note(contents.bundle, contents.approved, contents.site, verdicts))),
        "card.md": card.to_markdown(contents),
        "card.json": _json(card.to_json(contents)),
        "sbom-bundle.cdx.json": sbom.bundle_sbom(contents.bundle, contents.timestamp),
        "sbom-device.cdx.json": sbom.device_sbom(contents.packages, contents.on_device, contents.timestamp),
    }  # fmt: skip


def _figures(sections: list[Section], contents: Contents) -> dict[str, bytes]:
    made = {}
    for part in sections:
        for figure in part.figures:
            facts = {
                "figure": figure.name, "title": figure.title, "script": figure.script,
                "script_sha256": figure.script_sha256, "record": part.record, "record_sha256": part.sha256,
                "data": figure.data,
            }  # fmt: skip
            made[f"figures/{figure.name}.json"] = _json(facts).encode()
            made[f"figures/{figure.name}.svg"] = _svg_file(figure.svg).encode()
    return made


def _svg_file(svg: str) -> str:
    space = "" if "xmlns=" in svg.partition(">")[0] else ' xmlns="http://www.w3.org/2000/svg"'
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg.replace("<svg", f"<svg{space}", 1) + "\n"


def _page(
    contents: Contents,
    rows: list[record.Row],
    sections: list[Section],
    signed: list[dict[str, Any]],
    documents: Mapping[str, str],
) -> str:
    boms = {name: json.loads(documents[name]) for name in documents if name.startswith("sbom-")}
    verdicts = {row.id: row.verdict for row in rows}
    return page.render(
        "hscc_edge.validate.pack",
        "index.html.j2",
        {"wrap": _wrapping},
        c=contents,
        spec=contents.bundle.spec,
        version=hscc_edge.__version__,
        rows=rows,
        counts=_counts(rows),
        verdicts=record.VERDICTS,
        conclusion=_conclusion(rows, sections),
        bad=any(row.verdict == "fail" for row in rows),
        sections=sections,
        missing=[KINDS[kind] for kind in contents.missing],
        summary=words.summary(contents.bundle),
        layers=words.layers(contents.bundle),
        note=change.note(contents.bundle, contents.approved, contents.site, verdicts),
        locks=contents.of("lock"),
        uses=_uses(contents),
        card=card.to_json(contents),
        packages=_packages(boms["sbom-device.cdx.json"]),
        source=_property(boms["sbom-device.cdx.json"], "source"),
        unlisted=sbom.UNLISTED,
        checklists=checklist.checklists(contents),
        signed=signed,
        documents=sorted(documents),
    )


def _wrapping(text: object) -> Markup:
    """A name that may break after its dots, slashes and dashes if it is long."""
    escaped = str(Markup.escape(text))
    for mark in (".", "/", "-", "_") if len(escaped) > SHORT else ():
        escaped = escaped.replace(mark, f"{mark}<wbr>")
    return Markup(escaped)


def _uses(contents: Contents) -> Table | None:
    lines = contents.uses[1]
    caption = f"Uses of the test set, {len(lines)} in all: a test set that is looked at many times is no test set"
    return table_of(caption, lines) if lines else None


def _packages(bom: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, version, licence) of every component."""
    return [(item["name"], item.get("version", ""), _licence(item)) for item in bom.get("components", ())]


def _licence(item: Mapping[str, Any]) -> str:
    found = [entry.get("expression") or entry["license"].get("id") or entry["license"].get("name", "")
             for entry in item.get("licenses", ())]  # fmt: skip
    return ", ".join(found) or "not said by the package"


def _property(bom: Mapping[str, Any], name: str) -> str:
    found = [item["value"] for item in bom["metadata"]["properties"] if item["name"] == f"{sbom.PREFIX}{name}"]
    return str(found[0])


def _signed_row(contents: Contents, signed: list[dict[str, Any]]) -> record.Row:
    who = "; ".join(f"{item['meaning']} by {item['signer']}, {item['signed']}" for item in signed)
    row = record.Row(
        "integrity.signature", "Somebody vouches for the bundle", "Ed25519 over the bundle's manifest",
        "a signature that fits; whose key it is, is for the reader", who, "pass", "bundle/signatures",
    )  # fmt: skip
    return dataclasses.replace(row, site_number=contents.site.requirements.get(row.id, ""))


def _counts(rows: list[record.Row]) -> dict[str, int]:
    return {verdict: sum(row.verdict == verdict for row in rows) for verdict in record.VERDICTS}


def _conclusion(rows: list[record.Row], sections: list[Section]) -> str:
    """What the gate said; without one, what validation found and that no gate was run."""
    lines = [row for row in rows if row.id.startswith("gate.") and row.verdict != "not run"]
    if lines:
        counts = ", ".join(f"{count} {name}" for name, count in _counts(lines).items() if count)
        return f"Gate: {counts} of {len(lines)} lines."
    found = next((part.verdict for part in sections if part.kind == "validation"), "Validation was not run.")
    return f"{found} {NO_GATE}"


def _facts(contents: Contents, rows: list[record.Row]) -> dict[str, Any]:
    spec = contents.bundle.spec
    return {
        "schema": SCHEMA,
        "made_by": f"hscc-edge {hscc_edge.__version__}",
        "timestamp": contents.timestamp,
        "bundle": {"name": spec.name, "version": spec.version, "digest": contents.bundle.digest},
        "records": [{"file": item.name, "kind": item.kind, "sha256": item.sha256, "tie": item.remark}
                    for item in contents.recordings],
        "not_rendered": list(contents.unread),
        "not_run": contents.missing,
        "verdicts": _counts(rows),
    }  # fmt: skip


def _write(out: Path, files: Mapping[str, bytes], replace: bool) -> str:
    manifest = canonical({name: hashlib.sha256(content).hexdigest() for name, content in files.items()})
    with durable.new_directory(out, replace=replace) as draft:
        for name, content in {**files, MANIFEST: manifest}.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_bytes(content)
    return hashlib.sha256(manifest).hexdigest()


def _json(content: object) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
