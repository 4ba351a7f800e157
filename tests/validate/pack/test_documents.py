"""The pack's documents: SBOMs against packaging's reading, checklists, plan in words, card, change."""

import dataclasses
import json
from importlib.metadata import distribution, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hscc_edge.bundle import write_bundle
from hscc_edge.errors import ConfigError
from hscc_edge.model.plan import STRUCTURES, LayerPlan
from hscc_edge.validate.pack import card, change, checklist, sbom, words
from hscc_edge.validate.pack.packages import inventory, needed
from hscc_edge.validate.pack.site import TO_FILL, Site, read_site

WHEN = "2026-11-25T08:00:00Z"
SITE = """
[card]
owner = "Example Hospital"
intended_use = "second look"
[answers."STARD-AI"]
6 = "Board 12/26"
[requirements]
"export.fp32" = "SRS-7"
[change]
document = "PCCP 1.0"
allowed = ["name", "plan", "weights", "calibration", "parent"]
protocol = ["export.fp32"]
"""


@pytest.fixture(scope="module")
def packages():
    return inventory()


@pytest.fixture
def site(tmp_path):
    (tmp_path / "site.toml").write_text(SITE)
    return read_site(tmp_path / "site.toml")


def closure(extra):
    """What the extra needs here, by packaging's own reading of markers."""
    wanted, queue = {"hscc-edge"}, [Requirement(line) for line in requires("hscc-edge") or ()]
    queue = [item for item in queue if item.marker is None or item.marker.evaluate({"extra": extra})]
    while queue:
        item = queue.pop()
        name = canonicalize_name(item.name)
        if name in wanted:
            continue
        wanted.add(name)
        below = [Requirement(line) for line in requires(item.name) or ()]
        queue += [one for one in below if one.marker is None or
                  any(one.marker.evaluate({"extra": asked}) for asked in ("", *item.extras))]  # fmt: skip
    return wanted


def test_the_device_sbom_lists_what_the_device_extra_needs(packages):
    assert set(needed(packages, "device")) == closure("device")
    found = json.loads(sbom.device_sbom(packages, False, WHEN))
    names = {item["name"] for item in found["components"]}
    assert found["specVersion"] == "1.6" and names == closure("device") - {"hscc-edge"} and "torch" not in names
    versions = {item["name"]: item["version"] for item in found["components"]}
    assert versions["numpy"] == distribution("numpy").version
    licensed = [item["name"] for item in found["components"] if "licenses" in item]
    assert len(licensed) > 0.9 * len(names)
    said = [item["value"] for item in found["metadata"]["properties"]]
    assert set(sbom.UNLISTED) <= set(said) and any("not of the device" in text for text in said)


def test_what_the_device_recorded_is_listed_whole(packages):
    found = json.loads(sbom.device_sbom(packages, True, WHEN))
    assert len(found["components"]) == len(packages["packages"]) - 1
    assert any("recorded on the device" in item["value"] for item in found["metadata"]["properties"])


def test_the_bundle_sbom_has_every_file_by_its_digest(small):
    found = json.loads(sbom.bundle_sbom(small, WHEN))
    hashes = {item["name"]: item["hashes"][0]["content"] for item in found["components"] if "hashes" in item}
    assert {name: hashes[name] for name in small.files} == dict(small.files)
    assert hashes["parent bundle"] == small.spec.parent
    kinds = {item["name"]: item["type"] for item in found["components"]}
    assert kinds["models/model.safetensors"] == "machine-learning-model" and kinds["calibration cohort"] == "data"


def test_checklists_have_their_items_and_leave_open_what_the_site_must_say(contents, site):
    found = {item.name: item for item in checklist.checklists(contents)}
    assert {name: len(item.items) for name, item in found.items()} == {"STARD-AI": 48, "CLAIM": 44, "TRIPOD+AI": 52}
    main = {name: {item.number.rstrip("abcdefg") for item in one.items} for name, one in found.items()}
    assert [len(main[name]) for name in ("STARD-AI", "CLAIM", "TRIPOD+AI")] == [40, 44, 27]
    for one in found.values():
        assert 0 < one.open < len(one.items)
        assert all(bool(item.answer) != (item.status == TO_FILL) for item in one.items)
    answered = {item.name: item for item in checklist.checklists(dataclasses.replace(contents, site=site))}
    ethics = next(item for item in answered["STARD-AI"].items if item.number == "6")
    assert ethics.answer == "Board 12/26" and ethics.status == checklist.SITE


def test_every_fill_is_used_and_there(contents):
    from importlib.resources import files

    from hscc_edge.validate.pack.checklist import FILLS, tomllib

    raw = tomllib.loads(files("hscc_edge.validate.pack").joinpath("checklists.toml").read_text())
    named = {fill for one in raw.values() for _, _, fill in one["items"] if fill}
    assert named - set(FILLS) <= {"intended", "users"} and set(FILLS) <= named


@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_has_words(structure):
    ranks = () if structure == "dense" else (8, 16)
    layer = LayerPlan("a", structure, ranks, (), "64x3x3x3", 1, 2, 3, 4, 0.5, "cheap" if structure == "dense" else "")
    text = words.became(layer)
    assert len(text.split()) >= 3 and structure not in text


def test_the_plan_in_words_says_more_where_it_is_more(small, dense_bundle):
    assert "is not compressed" in words.summary(dense_bundle) and words.layers(dense_bundle) == []
    assert "2.92 times fewer operations (7,000 to 2,400" in words.summary(small).replace("an image", "")[:400]
    regions = words.layers(small)[2].became
    assert "in each of 4 regions" in regions and "16 channels" in regions
    assert words.was("10x32") == "linear layer, 32 inputs, 10 outputs"


def test_the_card_has_metrics_with_intervals_and_no_invented_word(contents, site):
    facts = card.to_json(dataclasses.replace(contents, site=site))
    assert facts["model_details"]["owners"][0] == {"name": "Example Hospital", "contact": TO_FILL}
    assert facts["monai_metadata"]["task"] == "classification"
    kinds = {(item["type"], item["slice"]) for item in facts["quantitative_analysis"]["performance_metrics"]}
    assert ("accuracy", "all") in kinds and ("sensitivity", "ring") in kinds
    text = card.to_markdown(contents)
    assert text.startswith("---\n") and "## Bias, Risks, and Limitations" in text and TO_FILL in text


def test_the_change_note_goes_by_the_plan_of_changes(small, dense_bundle, site, tmp_path):
    none = change.note(small, None, Site(), {})
    assert none.changes == () and "says nothing of a change" in none.conclusion
    found = change.note(small, dense_bundle, Site(), {})
    assert {item.name for item in found.changes} == {"name", "plan", "weights", "calibration", "parent"}
    assert "no predetermined plan" in found.conclusion
    assert change.note(small, dense_bundle, site, {"export.fp32": "pass"}).conclusion.startswith(
        "Within PCCP 1.0: every"
    )
    unmet = change.note(small, dense_bundle, site, {"export.fp32": "fail"})
    assert "its protocol is not met: export.fp32" in unmet.conclusion
    spec = dataclasses.replace(small.spec, head={"kind": "softmax", "labels": ["a", "b"]})
    other = write_bundle(tmp_path / "other", spec, {"models/model.safetensors": b"w"})
    assert "Outside PCCP 1.0: head" in change.note(other, dense_bundle, site, {"export.fp32": "pass"}).conclusion
    assert change.note(small, small, site, {}).conclusion == "Nothing that a bundle declares has changed."


@pytest.mark.parametrize(
    ("text", "words"),
    [("[card]\ncolour = 'red'", "unknown key 'card.colour'"), ("x", "is not TOML"), ("[cart]", "unknown key 'cart'"),
     ("[card]\nowner = 3", r"bad table \[card\]")],
)  # fmt: skip
def test_a_mistake_in_the_sites_file_is_told(text, words, tmp_path):
    (tmp_path / "site.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_site(tmp_path / "site.toml")


def test_an_answer_to_no_item_is_told(contents):
    for answers, sentence in (({"CLAIM": {"99": "x"}}, "item '99'"), ({"CLAIMS": {"1": "x"}}, "checklist 'CLAIMS'")):
        with pytest.raises(ConfigError, match=sentence):
            checklist.checklists(dataclasses.replace(contents, site=Site(answers=answers)))
