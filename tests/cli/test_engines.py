"""`build` and `engines` as a technician runs them, with the real builder of TensorRT-RTX; inference needs a GPU."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from typer.main import get_command

from hscc_edge.bundle import read_bundle
from hscc_edge.cli import app
from hscc_edge.cli.build import Wanted
from hscc_edge.errors import EngineError, HsccError, InputError
from hscc_edge.export.builder import BuildOptions
from hscc_edge.runtime.engines import EngineFacts, list_engines, read_engine, write_facts


def run(capsys, *words: object) -> dict:
    """The JSON object of a verb."""
    capsys.readouterr()
    get_command(app).main([*map(str, words), "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def say(capsys, *words: object) -> str:
    """What a verb tells a person."""
    capsys.readouterr()
    get_command(app).main([*map(str, words)], standalone_mode=False)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def cache(dense, phantom, tmp_path_factory) -> Path:
    """A cache with two engines of the bundle; treat it as read-only."""
    place = tmp_path_factory.mktemp("cache")
    for batch in (1, 2):
        words = ["build", dense, "--cache", place, "--max-batch", 2, "--best-batch", batch, "--cohort", phantom.root]
        get_command(app).main([*map(str, words)], standalone_mode=False)
    return place


def claim_parity(cache: Path) -> list[EngineFacts]:
    """The cache's engines with facts that say they were verified: what only a GPU can do."""
    found = [dataclasses.replace(item.facts, executed=True, parity={}) for item in list_engines(cache)]
    for facts in found:
        write_facts(facts)
    return found


def test_an_engine_that_did_not_run_is_not_activated(dense, phantom, cache, capsys):
    words = ("build", dense, "--cache", cache, "--max-batch", 2, "--cohort", phantom.root)
    assert "not verified: no GPU; not activated" in say(capsys, *words)
    found = run(capsys, *words)
    assert found["reused"] and not found["active"] and not found["executed"]
    assert found["activation"] == "not verified: no GPU; not activated"
    with pytest.raises(EngineError, match="was not verified"):
        run(capsys, "engines", "activate", Path(found["path"]).stem, dense, "--cache", cache)
    listed = run(capsys, "engines", "list", "--cache", cache)["engines"]
    assert len(listed) == 2 and not any(item["active"] or item["fault"] for item in listed)
    assert {item["best_batch"] for item in listed} == {1, 2} and all(item["precision"] == "fp16" for item in listed)
    assert "2 engines in" in say(capsys, "engines", "list", "--cache", cache)


def test_there_and_back_again(dense, cache, tmp_path, capsys):
    place = tmp_path / "cache"
    shutil.copytree(cache, place)
    first, second = claim_parity(place)
    at = ("--cache", place)
    for facts in (first, second):
        assert run(capsys, "engines", "activate", facts.key[:10], dense, *at)["key"] == facts.key
    active = {item["key"]: item["active"] for item in run(capsys, "engines", "list", *at)["engines"]}
    assert active == {first.key: [], second.key: [f"{read_bundle(dense).digest}.fp16"]}
    with pytest.raises(InputError, match="is active"):
        run(capsys, "engines", "remove", second.key, *at)
    assert run(capsys, "engines", "rollback", dense, *at)["key"] == first.key
    assert "active again" not in say(capsys, "engines", "remove", second.key, *at)
    assert [item["key"] for item in run(capsys, "engines", "list", *at)["engines"]] == [first.key]
    with pytest.raises(EngineError, match="expected 2 or more to go back"):
        run(capsys, "engines", "rollback", dense, *at)


def test_a_fault_is_shown(cache, tmp_path, capsys):
    place = tmp_path / "cache"
    shutil.copytree(cache, place)
    path = sorted(place.glob("*.engine"))[0]
    path.write_bytes(b"no engine")
    told = say(capsys, "engines", "list", "--cache", place)
    assert "not intact" in told and "was altered: run hscc-edge build again" in told.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--max-batch", 0), "max_batch is 0: expected 1 to 1024"),
        (("--best-batch", 9), "best_batch is 9: expected 1 to 8"),
        (("--workspace-mib", 0), "workspace_mib is 0: expected 1 to 1048576"),
        (("--dla", -1), "dla is -1: expected the number of a core"),
        (("--images", 0), "--images is 0: expected 1 or more"),
        (("--refittable",), "builds a refittable engine only where there is an NVIDIA GPU"),
        (("--version-compatible",), "has no lean runtime, which version-compatible engines need"),
        (("--dla", 0), "the DLA core 0 was asked for, and .* finds 0 here: build for the GPU"),
        (("--on", "ssh://a@b", "--cohort", "here"), "--cohort is here: expected an absolute path"),
    ],
)
def test_an_option_that_cannot_be_is_one_sentence(words, said, dense, tmp_path, capsys):
    with pytest.raises(HsccError, match=said):
        run(capsys, "build", dense, "--cache", tmp_path / "cache", *words)
    assert not list(tmp_path.rglob("*.engine"))


def test_options_reach_the_engine(dense, tmp_path, capsys):
    words = ("--power-mode", "MAXN", "--workspace-mib", 64, "--max-batch", 1)
    found = run(capsys, "build", dense, "--cache", tmp_path, "--precision", "fp32", *words)
    facts = read_engine(Path(found["path"]))
    assert (facts.power_mode, facts.workspace_mib, facts.max_batch, facts.dla) == ("MAXN", 64, 1, None)


def test_another_machine_is_asked_for_the_same():
    """Every option that stands in the key is passed on."""
    options = BuildOptions(2, 64, version_compatible=True, refittable=True, dla=1, power_mode="30W")
    words = Wanted("int8", Path("/cohort"), 8, Path("/cache"), 4, options).words()
    assert words[:2] == ["build", "bundle"] and words[-2:] == ["--version-compatible", "--refittable"]
    given = dict(zip(words[2:-2:2], words[3:-2:2], strict=True))
    assert given == {
        "--precision": "int8", "--max-batch": "4", "--best-batch": "2", "--workspace-mib": "64", "--images": "8",
        "--dla": "1", "--cache": "/cache", "--cohort": "/cohort", "--power-mode": "30W",
    }  # fmt: skip
    assert not {"--dla", "--cohort", "--refittable"} & set(Wanted("fp16", None, 8, None, 4, BuildOptions()).words())
