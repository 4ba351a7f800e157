"""`hscc-edge models` as a technician runs it, on the state directory of a worker that goes on."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from commandline import run
from workbench import Bench, slices

from hscc_edge.bundle import read_bundle, rewrite
from hscc_edge.serve.worker import models

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

    def verb(*words: object) -> dict:
        code, out, err = run(monkeypatch, capsys, "models", words[0], config, *words[1:], "--json")
        assert code == 0, err
        return json.loads(out)

    assert run(monkeypatch, capsys, "models", "list", config)[0] == 2  # no daemon has run here
    made = Bench(tmp_path, dense)
    assert verb("install", tmp_path / "newer")["state"] == "installed"
    assert verb("shadow", newer[:12])["state"] == "shadow"
    made.worker.refresh()
    made.put(slices(phantom, "1", 3))
    made.work()
    assert made.worker.shadow() == 1
    compared = verb("compare")
    assert (compared["cases"], compared["agreement"], compared["flips"]) == (1, 1.0, [])
    assert verb("shadow", "--off")["shadow"] is None
    assert verb("activate", newer[:12])["state"] == "active"
    assert [(item["digest"], item["state"]) for item in verb("list")["models"]] == [
        (first, "retired"), (newer, "active"),
    ]  # fmt: skip
    code, _, err = run(monkeypatch, capsys, "models", "activate", config, first[:12])
    assert code == 2 and "go back with hscc-edge models rollback" in err
    assert verb("rollback", "--reason", "tried")["digest"] == first
    code, out, _ = run(monkeypatch, capsys, "models", "list", config)
    assert code == 0 and "withdrawn" in out and "tried" in out
    assert run(monkeypatch, capsys, "models", "rollback", config)[0] == 2
    assert run(monkeypatch, capsys, "models", "shadow", config)[0] == 2
    assert run(monkeypatch, capsys, "models", "activate", config, "nothing")[0] == 2
    actions = [json.loads(line)["action"] for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert actions == ["model-install", "model-shadow", "model-activate", "model-rollback"]
    made.close()


def test_killed_at_any_step_the_old_or_the_new_model_is_whole(tmp_path, dense):
    config = tmp_path / "serve.toml"
    config.write_text(CONFIG.format(bundle=dense))
    shutil.copytree(dense, tmp_path / "newer")
    newer = rewrite(read_bundle(tmp_path / "newer"), {}).digest
    made = Bench(tmp_path, dense)

    def killed_at(point: str, *words: object) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "hscc_edge", "models", words[0], str(config), *map(str, words[1:])],
            env={**os.environ, "HSCC_EDGE_CRASH": point}, start_new_session=True, capture_output=True,
        )  # fmt: skip
        assert done.returncode == -9

    killed_at("model-installed", "install", tmp_path / "newer")
    assert [model.state for model in models.models(made.journal)] == ["active"]
    models.install(made.station, made.journal, tmp_path / "newer")
    killed_at("model-switched", "activate", newer)
    assert models.find(made.journal, "tiny", models.ACTIVE).digest == newer
    made.worker.refresh()
    assert models.load(made.station, models.find(made.journal, "tiny", models.RETIRED)).root.is_dir()
    made.close()
