"""Recall of a bad model: each of its current reports is taken back once, and never two contradict one another."""

import json
from functools import partial

import pytest
from outgoing import QUICK, Desk, decided, report_next
from typer.testing import CliRunner

from hscc_edge.cli import app
from hscc_edge.errors import InputError
from hscc_edge.serve import outbox
from hscc_edge.serve.audit import read
from hscc_edge.serve.results.recall import affected, recall
from hscc_edge.serve.results.result import read_result
from hscc_edge.serve.studies import StaleReport, finish
from hscc_edge.serve.timeline import timeline

DIGEST = "ab" * 32


@pytest.fixture
def desk(tmp_path):
    found = Desk(tmp_path, QUICK)
    for number in range(3):
        found.report(f"1.2.{number}")
    with found.journal.transaction() as db:
        for number in range(3):
            db.execute(
                "INSERT INTO instances (sop, sop_class, digest, series, study, file, bytes, door, state, received) "
                "VALUES (?, '', ?, '', ?, ?, 1, 'dimse', 'reported', 0)",
                (f"1.2.{number}.1", f"d{number}", f"1.2.{number}", f"f{number}"),
            )
        db.execute("UPDATE instances SET removed = 1 WHERE file = 'f2'")
    return found


def activate(desk: Desk, digest: str) -> None:
    with desk.journal.transaction() as db:
        db.execute("INSERT INTO models VALUES (?, 'brain', 5, 'x', 'active', NULL, 0)", (digest,))


def current(desk: Desk) -> list[tuple[str, str, str | None, bytes]]:
    return desk.journal.read("SELECT study, sop, predecessor, content FROM reports WHERE current = 1 ORDER BY study")


@pytest.mark.parametrize("model", ["brain", DIGEST[:8], DIGEST])
def test_every_current_report_is_taken_back_by_one_that_names_it(desk, model):
    before = {study: sop for study, sop, _, _ in current(desk)}
    assert len(recall(desk.station, desk.journal, model)) == 3
    assert len(current(desk)) == 3
    for study, sop, predecessor, content in current(desk):
        said = read_result(content)
        assert predecessor == said.predecessor == before[study] and sop == said.sop
        assert [case.reason.value for case in said.cases] == ["recalled"] and said.cases[0].finding is None
        assert [event.kind for event in timeline(desk.journal, study)] == ["reported", "reported", "recalled"]
    assert [line.action for line in read(desk.station.config.state, desk.station.key)][-1] == "recall"


def test_a_second_recall_finds_nothing(desk):
    recall(desk.station, desk.journal, "brain")
    before = current(desk)
    assert recall(desk.station, desk.journal, "brain") == [] and current(desk) == before


def test_what_was_not_sent_yet_is_not_sent_any_more(desk):
    item = outbox.due(desk.journal, "archive")[0]
    outbox.delivered(desk.journal, item)
    recall(desk.station, desk.journal, "brain")
    assert desk.counts() == {"delivered": 1, "withheld": 2, "pending": 3}
    assert {found.sop for found in outbox.due(desk.journal, "archive")} == {sop for _, sop, _, _ in current(desk)}


def test_another_model_s_reports_stay(desk):
    with desk.journal.transaction() as db:
        db.execute("UPDATE reports SET digest = ? WHERE study = '1.2.1'", ("cd" * 32,))
    with pytest.raises(InputError, match="stands for 2 bundles"):
        recall(desk.station, desk.journal, "brain")
    assert [item.key for item in recall(desk.station, desk.journal, "cdcdcdcd")] == [desk.station.who("1.2.1")]
    assert affected(desk.journal, "lung") == [] and affected(desk.journal, "ab") == []


def test_again_opens_the_studies_whose_files_are_here_and_the_new_report_follows_the_notice(desk):
    activate(desk, "cd" * 32)
    recall(desk.station, desk.journal, DIGEST, again=True)
    states = dict(desk.journal.read("SELECT study, state FROM instances"))
    assert states == {"1.2.0": "received", "1.2.1": "received", "1.2.2": "reported"}
    notice = current(desk)[0][1]
    report = desk.report("1.2.0")
    assert report.predecessor == notice and read_result(report.content).cases[0].finding.meaning == "Glioma"
    assert [sop for study, sop, _, _ in current(desk) if study == "1.2.0"] == [report.sop]
    chain = desk.journal.read("SELECT sop, predecessor FROM reports WHERE study = '1.2.0' ORDER BY id")
    assert [predecessor for _, predecessor in chain[1:]] == [sop for sop, _ in chain[:-1]]


def test_again_with_the_model_that_is_recalled_is_refused(desk):
    activate(desk, DIGEST)
    with pytest.raises(InputError, match="is the active one"):
        recall(desk.station, desk.journal, "brain", again=True)
    assert len(affected(desk.journal, "brain")) == 3


def test_a_report_that_was_made_before_the_recall_is_not_written_after_it(desk):
    made = report_next(desk.station.config, desk.journal, "1.2.0", [decided("1.2.0", count=3)])
    recall(desk.station, desk.journal, "brain")
    before = current(desk)
    with pytest.raises(StaleReport):
        finish(desk.journal, "1.2.0", [], [made])
    assert current(desk) == before


def test_the_verbs_list_recall_and_send_again(desk, tmp_path, monkeypatch):
    config = tmp_path / "serve.toml"
    config.write_text('state = "state"\n[[model]]\nbundle = "."\nname = "brain"\n[[destination]]\nport = 1\n')
    run = CliRunner()

    def verb(*words: str) -> dict:
        done = run.invoke(app, [*words, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert verb("recall", "brain", str(config), "--look")["recalled"] == 0
    said = verb("recall", "brain", str(config))
    assert said["recalled"] == 3 and said["active"] is False and verb("recall", "brain", str(config))["recalled"] == 0
    items = outbox.due(desk.journal, "archive")
    for item in items:
        outbox.bury(desk.journal, item, "status 0xc000")
    listed = verb("redrive", str(config))
    assert listed["redriven"] == 0 and [letter["id"] for letter in listed["dead"]] == [item.id for item in items]
    monkeypatch.setattr(outbox, "dead_letters", partial(outbox.dead_letters, limit=1))
    assert verb("redrive", str(config), str(items[0].id))["redriven"] == 1
    outbox.bury(desk.journal, items[0], "status 0xc000")
    assert verb("redrive", str(config), str(items[1].id))["redriven"] == 1  # one beyond those that are listed
    assert verb("redrive", str(config), "--all")["redriven"] == 2
    with pytest.raises(InputError, match="is no dead letter"):
        run.invoke(app, ["redrive", str(config), "999"], catch_exceptions=False)
    shown = run.invoke(app, ["recall", "brain", str(config), "--look"]).output
    assert "0 reports would be recalled" in shown and "1.2.0" not in json.dumps(said)
