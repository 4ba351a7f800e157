"""The pack: same inputs, same bytes; what was not run is said; nobody is named; a browser with axe finds no barrier."""

import html
import json
import re
import shutil
import zlib
from pathlib import Path

import pytest
from axe import axe

from hscc_edge.bundle import add_files, read_bundle
from hscc_edge.errors import BundleError, InputError
from hscc_edge.validate.pack import pdf, record, sbom
from hscc_edge.validate.pack.contents import gather
from hscc_edge.validate.pack.moment import moment
from hscc_edge.validate.pack.pack import NO_GATE, write_pack
from hscc_edge.validate.pack.recording import KINDS, parse_recording, tie
from hscc_edge.validate.pack.signature import FOLDER

WHEN, LATER = "2026-11-25T08:00:00Z", "2027-01-01T00:00:00Z"
DATED = {"index.html", "pack.json", "sbom-bundle.cdx.json", "sbom-device.cdx.json", "manifest.json"}


def content_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def page(pack):
    return (pack.root / "index.html").read_text()


def test_the_same_inputs_give_the_same_bytes_but_for_the_timestamp(pack, small, dense_bundle, records, tmp_path):
    """Another place, other names of the records, another order, a later moment: only the moment shows."""
    moved = shutil.copytree(small.root, tmp_path / "elsewhere")
    given = [Path(shutil.copy(path, tmp_path / f"{number}{path.suffix}")) for number, path in
             enumerate(reversed(list(records.values())))]  # fmt: skip
    other = write_pack(gather(moved, given, LATER, approved=dense_bundle.root), tmp_path / "again", pdf=False)
    first, second = content_of(pack.root), content_of(other.root)
    assert {name for name in first if first[name] != second[name]} == DATED and first.keys() == second.keys()
    for name in ("index.html", "pack.json"):
        assert first[name].replace(WHEN.encode(), LATER.encode()) == second[name]
    for name in ("sbom-bundle.cdx.json", "sbom-device.cdx.json"):
        assert undated(first[name]) == undated(second[name])


def undated(content: bytes) -> dict:
    """An SBOM without its moment and the serial number that follows from it."""
    facts = json.loads(content)
    assert facts.pop("serialNumber").startswith("urn:uuid:") and facts["metadata"].pop("timestamp")
    return facts


def test_an_sbom_of_one_moment_is_always_the_same(contents):
    first, second = (sbom.bundle_sbom(contents.bundle, WHEN) for _ in range(2))
    assert first == second != sbom.bundle_sbom(contents.bundle, LATER)


def test_the_pdf_is_tagged_dated_by_the_page_and_the_same_every_time(page):
    plot = page[page.index("<svg") : page.index("</svg>") + 6]
    start = page.index('<section id="change"')
    part = page[start : page.index("</section>", start) + 10]
    short = re.sub(r"<main>.*</main>", lambda _: f"<main>{part}{plot}</main>", page, flags=re.DOTALL)
    made = pdf.to_pdf(short)
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", made, re.DOTALL)
    inside = b"".join(zlib.decompress(stream) for stream in streams if stream[:1] == b"x")
    assert made.startswith(b"%PDF") and b"pdfuaid" in inside + made and b"StructTreeRoot" in inside + made
    assert b"2026-11-25T08:00:00Z" in inside + made and b"DejaVu" in inside + made
    assert pdf.to_pdf(short) == made != pdf.to_pdf(short.replace(WHEN, LATER))


def test_the_page_says_what_was_found_and_what_was_not_run(pack, page, records):
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))
    found = json.loads(records["report"].read_text())
    assert NO_GATE in text and pack.conclusion in text
    assert f"{100 * found['comparison']['difference']:+.1f} points" in text
    for kind in ("gate", "robustness", "bench", "flips", "doctor"):
        assert kind in pack.not_run and f"{KINDS[kind].title}: not run" in text
    assert "Locked" in text and "broken before they came" in text and "Uses of the test set, 2 in all" in text
    assert "not of the device" in text and "TensorRT, CUDA and cuDNN: from JetPack, not in this SBOM" in text


def test_the_page_holds_everything_itself_and_names_nobody(pack, page):
    bare = re.sub(r"http://(www\.w3\.org|purl\.org|creativecommons\.org)", "", page)
    assert not re.search("https?:|://", bare), "a package may be called httpx; an address stands nowhere"
    assert "<script" not in page and "<link" not in page
    assert "JOHN" not in "".join(content.decode("utf-8", "replace") for content in content_of(pack.root).values())
    used = re.findall(r' id="([^"]+)"', page)
    assert len(used) == len(set(used)) and set(re.findall(r'href="#([^"]+)"', page)) <= set(used)


def test_axe_finds_no_barrier(page, tmp_path):
    found = axe(page, tmp_path)
    assert found["violations"] == [] and found["passes"] > 20


def test_each_figure_stands_with_its_data_and_script(pack, records):
    made = sorted((pack.root / "figures").glob("*.json"))
    assert len(made) >= 4
    for path in made:
        facts = json.loads(path.read_text())
        svg = path.with_suffix(".svg").read_text()
        assert f'aria-label="{html.escape(facts["title"])}"' in svg and "xmlns=" in svg
        assert "hscc_edge.validate" in facts["script"] and len(facts["script_sha256"]) == 64
        assert facts["data"]["comparison"] == json.loads(records["report"].read_text())["comparison"]
        assert (pack.root / facts["record"]).is_file()


def test_the_verification_record_has_a_verdict_for_every_row(pack, contents):
    facts = json.loads((pack.root / "verification.json").read_text())
    rows = {row["id"]: row for row in facts["rows"]}
    assert {row["verdict"] for row in rows.values()} <= set(record.VERDICTS)
    assert rows["export.fp32"]["verdict"] == "pass" and rows["export.fp16"]["verdict"] == "fail"
    assert rows["data.lock"]["verdict"] == "fail" and "2 files that cannot be read" in rows["data.lock"]["result"]
    assert rows["validation.difference"]["verdict"] == "reported" and rows["gate.result"]["verdict"] == "not run"
    assert set(facts["anomalies"]) == {"export.fp16", "data.lock"}
    for row in rows.values():
        assert not row["figure"] or (pack.root / row["figure"].partition(" ")[0]).exists()
    assert len((pack.root / "verification.csv").read_text().splitlines()) == len(rows) + 1
    assert pack.verdicts["not run"] == len(facts["not_run"])


def test_the_gates_lines_and_verdict_are_rows(small, records, tmp_path):
    facts = json.loads(records["report"].read_text())
    lines = [{"name": "latency.speedup", "state": "FAIL", "figures": "2.9x; at least 4x"},
             {"name": "memory", "state": "INCONCLUSIVE", "figures": "not measured"}]  # fmt: skip
    facts |= {"gate": {"state": "FAIL", "lines": lines}, "verdict": {"word": "INCONCLUSIVE", "margin": 0.02}}
    facts["invalid"] = "invalid: throttled (alert, gpu: 1)"
    (tmp_path / "gated.json").write_text(json.dumps(facts))
    found = gather(small.root, [tmp_path / "gated.json"], WHEN)
    rows = {row.id: row for row in record.rows(found)}
    assert rows["gate.latency.speedup"].verdict == "fail" and rows["gate.memory"].verdict == "inconclusive"
    assert (
        rows["validation.difference"].verdict == "inconclusive"
        and "2 points" in rows["validation.difference"].criterion
    )
    assert "gate" not in found.missing and "gate.result" not in rows
    assert rows["validation.latency"].verdict == "inconclusive" and "throttled" in rows["validation.latency"].result


def test_a_record_of_another_bundle_is_refused(dense_bundle, small, records):
    with pytest.raises(InputError, match="was taken on the bundle"):
        gather(dense_bundle.root, [records["report"]], WHEN)
    two = gather(small.root, [records["report"], records["report"]], WHEN)
    assert len(two.of("validation")) == 1
    changed = json.loads(records["report"].read_text())
    changed["not_run"] = []
    other = records["report"].with_name("other.json")
    other.write_text(json.dumps(changed))
    with pytest.raises(InputError, match="2 records are of kind 'validation'"):
        gather(small.root, [records["report"], other], WHEN)


def test_a_report_that_came_into_the_bundle_later_does_not_cut_the_tie(small, records, copy_of):
    bundle = add_files(read_bundle(copy_of(small.root)), {"reports/validation.json": records["report"].read_bytes()})
    given = parse_recording(records["report"].read_bytes(), "report.json")
    assert "as it was before reports/validation.json" in tie(given, bundle)
    weights = add_files(bundle, {"models/model.safetensors": b"other weights"})
    with pytest.raises(InputError, match="was taken on the bundle"):
        tie(given, weights)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "is not JSON"), (b"[1]", "of an unknown kind"), (b'{"kind": "horoscope"}', "expected one of validation"),
     (b"{}", "of an unknown kind")],
)  # fmt: skip
def test_an_unknown_record_is_refused(content, words):
    with pytest.raises(InputError, match=words):
        parse_recording(content, "record.json")


def test_an_unknown_report_in_the_bundle_is_listed(small, copy_of):
    bundle = add_files(read_bundle(copy_of(small.root)), {"reports/other.json": b'{"kind": "horoscope"}'})
    assert gather(bundle.root, [], WHEN).unread == ("reports/other.json",)


def test_a_signature_that_does_not_fit_spoils_the_pack(small, copy_of, tmp_path):
    root = copy_of(small.root)
    (root / FOLDER).mkdir()
    (root / FOLDER / "somebody.json").write_text("{}")
    with pytest.raises(BundleError, match="is no signature"):
        write_pack(gather(root, [], WHEN), tmp_path / "pack", pdf=False)
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2026-11-25T08:00:00Z", WHEN), ("2026-11-25T09:00:00.5+01:00", WHEN), ("2026-11-25T08:00:00", None), ("x", None)],
)
def test_moments(text, expected):
    if expected:
        assert moment(text) == expected
    else:
        with pytest.raises(InputError, match="ISO 8601"):
            moment(text)
