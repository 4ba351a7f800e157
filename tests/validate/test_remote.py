"""`validate --on`: another machine, behind a real sshd, runs both bundles; figures, names and uses are made here."""

import dataclasses
import json
import shutil
from pathlib import Path

import commandline
import pytest

from hscc_edge import __version__
from hscc_edge.data.cohort import Cohort, read_cohort, write_cohort
from hscc_edge.errors import CohortError, InputError, RemoteError
from hscc_edge.export.remote import Host
from hscc_edge.validate.collect import Conditions, collect
from hscc_edge.validate.remote import collect_there
from hscc_edge.validate.uses import read_uses

QUICK = Conditions(seconds=0)


@pytest.fixture
def site(heads, tmp_path) -> Cohort:
    """The cohort under a key of its own, with names of files that a shell or sha256sum could stumble over."""
    root = tmp_path / "site"
    (root / "files").mkdir(parents=True)
    rows = []
    for number, item in enumerate(heads.instances):
        name = f"a b/$(x) '{number}' \\ ä\n.dcm"
        (root / "files" / name).parent.mkdir(exist_ok=True)
        shutil.copy(heads.path(item), root / "files" / name)
        rows.append(dataclasses.replace(item, file=name, sex="FM"[number % 2]))
    moved = dataclasses.replace(heads, root=root, files=Path("files"), instances=tuple(rows), secret=b"k" * 32)
    write_cohort(root, moved)
    return read_cohort(root)


def test_the_other_machine_s_answers_are_those_of_this_one(station, twins, site, monkeypatch, capsys):
    small, dense = twins
    part = site.select("test")
    here = collect(small, dense, part, QUICK)
    words = ("validate", small.root, "--reference", dense.root, "--cohort", site.root, "--on", "ssh://jetson",
             "--seconds", 0, "--json")  # fmt: skip
    code, out, err = commandline.run(monkeypatch, capsys, *words, "--collect", "-")
    assert code == 0, err
    there = json.loads(out)
    expected = json.loads(json.dumps(here.to_json()))
    for key in ("reference", "candidate", "cohort", "columns"):
        assert there[key] == expected[key]
    assert there["conditions"]["on"] == "jetson" and there["cohort"]["digest"] == part.digest
    uses = read_uses(site.root)
    assert len(uses) == len(there["uses"]) == 2 and uses[0].bundles == uses[1].bundles == (small.digest, dense.digest)
    assert set(there["columns"]) >= {"sex"}


def test_only_the_split_goes_and_the_key_stays_here(station, twins, site):
    """The device's hscc-edge is a program that lists what came, and ends as one that failed."""
    station.put(
        "hscc-edge",
        f"""\
[ "$1" = --version ] && {{ echo {__version__}; exit; }}
find . -type f | grep -c /files/ >&2; ls cohort candidate/models | tr '\\n' ' ' >&2; echo >&2; exit 2""",
    )
    part = site.select("test")
    with pytest.raises(RemoteError) as caught:
        collect_there(Host("jetson"), *twins, part, QUICK)
    listed = str(caught.value)
    assert "model.onnx" in listed and "cohort.toml files instances.csv" in listed
    assert not any(word in listed for word in ("cohort.key", "uses", "safetensors"))
    assert len(read_uses(site.root)) == 1, "a look that brought nothing is a look"


def test_another_machine_s_answer_about_other_cases_is_refused(station, twins, site, tmp_path):
    part = site.select("test")
    answer = collect(*twins, dataclasses.replace(part, secret=b""), QUICK).to_json()
    said = tmp_path / "answer.json"
    station.put("hscc-edge", f'[ "$1" = --version ] && echo {__version__} || cat {said}')
    said.write_text(json.dumps(answer))
    found = collect_there(Host("jetson"), *twins, part, QUICK)
    assert found.candidate.cases[0].key == part.pseudonym(next(iter(part.cases("study"))))
    swapped = {**answer["candidate"], "cases": answer["candidate"]["cases"][::-1]}
    for changed, sentence in (
        ({"candidate": swapped}, "answered for other cases"),
        ({"cohort": {**answer["cohort"], "digest": "0" * 64}}, "collected on another cohort"),
    ):
        said.write_text(json.dumps({**answer, **changed}))
        with pytest.raises(RemoteError, match=sentence):
            collect_there(Host("jetson"), *twins, part, QUICK)
    said.write_text("{}")
    with pytest.raises(InputError, match="the answer of jetson is no collection"):
        collect_there(Host("jetson"), *twins, part, QUICK)


def test_a_file_that_changed_is_not_sent_and_the_split_not_looked_at(twins, site):
    part = site.select("test")
    part.path(part.instances[0]).write_bytes(b"another")
    part.path(part.instances[1]).unlink()
    with pytest.raises(CohortError, match=f"^2 of {len(part.instances)} files of .* are missing, or have changed"):
        collect_there(Host("nowhere.invalid"), *twins, part, QUICK)
    assert read_uses(site.root) == ()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--from", "x.json", "--on", "ssh://jetson"], "--from and --on are both given"),
        (["--collect", "-"], "--collect is -, without --json"),
        (["--on", "ssh://jetson"], "are not all given"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, sentence, monkeypatch, capsys):
    code, _, err = commandline.run(monkeypatch, capsys, "validate", *words)
    assert code == 2 and sentence in err


def test_a_runtime_that_needs_torch_is_refused(twins, heads):
    with pytest.raises(InputError, match="eager needs torch"):
        collect_there(Host("jetson"), *twins, heads.select("test"), Conditions("eager", seconds=0))
