"""The verbs that look at a daemon's state directory: tables for a person, one JSON object for a program."""

import json
import sys
from pathlib import Path

import pytest
from commandline import run

from hscc_edge.serve.audit import audit, seal
from hscc_edge.serve.config_file import read_config
from hscc_edge.serve.outbox import due
from hscc_edge.serve.station import Station, open_state

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "serve"))
from entries import ROOT, finished, received, sent

CONFIG = """
state = "state"
reserve_mib = 1
[[model]]
bundle = "bundle"
[[destination]]
name = "pacs"
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "serve.toml"
    path.write_text(CONFIG)
    settings = read_config(path)
    station = Station(settings, open_state(settings.state))
    journal = station.journal()
    finished(journal, received(station, journal, 1, images=2))
    sent(journal)
    finished(journal, received(station, journal, 2))
    received(station, journal, 3)
    study = received(station, journal, 4)
    with journal.transaction() as db:
        db.execute("UPDATE instances SET state = 'no-result', reason = 'too few images' WHERE study = ?", (study,))
    assert len(due(journal, "pacs")) == 1
    audit(station, "login", account="anna")
    seal(station, journal)
    journal.close()
    return path


def asked(monkeypatch, capsys, *words: object) -> tuple[int, dict]:
    code, out, _ = run(monkeypatch, capsys, *words, "--json")
    assert ROOT not in out and "SECRET" not in out
    return code, json.loads(out)


@pytest.mark.parametrize(
    "words",
    [
        ("status",), ("studies",), ("queue",), ("quarantine",), ("audit", "verify"), ("audit", "show"),
        ("state", "check"),
    ],
)  # fmt: skip
def test_each_verb_shows_a_table_and_no_identifier(config, monkeypatch, capsys, words):
    code, out, err = run(monkeypatch, capsys, *words, config)
    assert code == 0 and out.strip() and not err
    assert ROOT not in out and "SECRET" not in out
    _, found = asked(monkeypatch, capsys, *words, config)
    assert isinstance(found, dict) and found


def test_status_counts_and_says_that_nothing_lives(config, monkeypatch, capsys):
    _, found = asked(monkeypatch, capsys, "status", config)
    assert found["alive"] is False and found["instances"] == {"reported": 3, "received": 1, "no-result": 1}
    assert any("heartbeat" in alarm["title"] for alarm in found["alarms"])


def test_a_study_s_timeline_by_its_key(config, monkeypatch, capsys):
    _, found = asked(monkeypatch, capsys, "studies", config)
    keys = [item["key"] for item in found["studies"]]
    assert len(keys) == 4 and found["timeline"] == []
    lines = {key: asked(monkeypatch, capsys, "studies", config, key)[1]["timeline"] for key in keys}
    told = [[line["event"] for line in events] for events in lines.values()]
    assert ["received", "started", "reported", "sent", "committed"] in told
    _, found = asked(monkeypatch, capsys, "studies", config, "--state", "open")
    assert len(found["studies"]) == 1
    code, _, err = run(monkeypatch, capsys, "studies", config, "fffffffffffe")
    assert code == 2 and "no study has a key" in err
    assert run(monkeypatch, capsys, "studies", config, "--state", "odd")[0] == 2


def test_the_queue_is_what_waits(config, monkeypatch, capsys):
    _, found = asked(monkeypatch, capsys, "queue", config)
    assert found["counts"]["instances"] == 1 and len(found["work"]) == 1 and len(found["sending"]) == 1


def test_quarantine_releases_a_study_once(config, monkeypatch, capsys):
    _, found = asked(monkeypatch, capsys, "quarantine", config)
    (item,) = found["aside"]
    assert item["reason"] == "too few images"
    _, found = asked(monkeypatch, capsys, "quarantine", config, "--release", item["key"])
    assert found["released"] == 1 and found["aside"] == []
    assert run(monkeypatch, capsys, "quarantine", config, "--release", item["key"])[0] == 2
    _, shown = asked(monkeypatch, capsys, "audit", "show", config, "--action", "quarantine-release")
    assert [line["facts"]["instances"] for line in shown["lines"]] == [1]


def test_backup_restore_and_check(config, tmp_path, monkeypatch, capsys):
    code, found = asked(monkeypatch, capsys, "state", "export", config, "--out", tmp_path / "copy")
    assert code == 0 and found["instances"] == 5
    (tmp_path / "state").rename(tmp_path / "lost")
    code, found = asked(monkeypatch, capsys, "state", "import", config, "--from", tmp_path / "copy")
    assert code == 0 and found["faults"] == []
    next((tmp_path / "state" / "spool").glob("*.dcm")).unlink()
    code, found = asked(monkeypatch, capsys, "state", "check", config)
    assert code == 1 and len(found["faults"]) == 1


def test_audit_verify_finds_a_changed_line(config, tmp_path, monkeypatch, capsys):
    path = tmp_path / "state" / "audit.jsonl"
    path.write_bytes(path.read_bytes().replace(b"anna", b"otto"))
    code, found = asked(monkeypatch, capsys, "audit", "verify", config)
    assert code == 1 and found["lines"] == 1 and len(found["faults"]) == 1


@pytest.mark.parametrize("verb", ["status", "studies", "queue", "quarantine"])
def test_without_a_state_directory_one_sentence(tmp_path, monkeypatch, capsys, verb):
    path = tmp_path / "serve.toml"
    path.write_text(CONFIG)
    code, out, err = run(monkeypatch, capsys, verb, path)
    assert code == 2 and not out and "is no state directory" in err
    assert not (tmp_path / "state").exists()
