"""`hscc-edge models` as a technician runs it, on the state directory of a worker that goes on."""

import json
import shutil

import pytest
from commandline import run
from workbench import Bench, slices

from hscc_edge.bundle import read_bundle, rewrite

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
CONFIG = """
state = "state"
[[model]]
bundle = "{bundle}"
name = "tiny"
[[destination]]
"""


def test_a_bundle_is_installed_shadowed_activated_and_gone_back_from(tmp_path, dense, phantom, monkeypatch, capsys):
    config = tmp_path / "serve.toml"
    config.write_text(CONFIG.format(bundle=dense))
    shutil.copytree(dense, tmp_path / "newer")
    newer, first = rewrite(read_bundle(tmp_path / "newer"), {}).digest, read_bundle(dense).digest

    def models(*words: object) -> dict:
        code, out, err = run(monkeypatch, capsys, "models", words[0], config, *words[1:], "--json")
        assert code == 0, err
        return json.loads(out)

    assert run(monkeypatch, capsys, "models", "list", config)[0] == 2  # no daemon has run here
    made = Bench(tmp_path, dense)
    assert models("install", tmp_path / "newer")["state"] == "installed"
    assert models("shadow", newer[:12])["state"] == "shadow"
    made.worker.refresh()
    made.put(slices(phantom, "1", 3))
    made.work()
    assert made.worker.shadow() == 1
    compared = models("compare")
    assert (compared["cases"], compared["agreement"], compared["flips"]) == (1, 1.0, [])
    assert models("shadow", "--off")["shadow"] is None
    assert models("activate", newer[:12])["state"] == "active"
    assert [(item["digest"], item["state"]) for item in models("list")["models"]] == [
        (first, "retired"), (newer, "active"),
    ]  # fmt: skip
    code, _, err = run(monkeypatch, capsys, "models", "activate", config, first[:12])
    assert code == 2 and "go back with hscc-edge models rollback" in err
    assert models("rollback", "--reason", "tried")["digest"] == first
    code, out, _ = run(monkeypatch, capsys, "models", "list", config)
    assert code == 0 and "withdrawn" in out and "tried" in out
    assert run(monkeypatch, capsys, "models", "rollback", config)[0] == 2
    assert run(monkeypatch, capsys, "models", "shadow", config)[0] == 2
    assert run(monkeypatch, capsys, "models", "activate", config, "nothing")[0] == 2
    actions = [json.loads(line)["action"] for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert actions == ["model-install", "model-shadow", "model-activate", "model-rollback"]
    made.close()
