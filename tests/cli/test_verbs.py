"""Every verb: help with an example, one JSON object, and every mistake one sentence with exit code 2."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import commandline
import pytest
from typer.main import get_command

from hscc_edge.cli import app
from hscc_edge.data.phantom import write_phantom


def verbs() -> list[tuple[str, ...]]:
    found = []
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found += [(name, sub) for sub in inner] if inner else [(name,)]
    return found


def run(*words: object, monkeypatch, capsys) -> tuple[int, str, str]:
    return commandline.run(monkeypatch, capsys, *words)


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_help_has_an_example(verb, monkeypatch, capsys):
    code, out, _ = run(*verb, "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and f"Example: hscc-edge {' '.join(verb)}" in " ".join(out.split()) and "--json" in out


@pytest.fixture
def place(tmp_path, dense, phantom, recipe) -> dict[str, Path]:
    """Good inputs, and bad ones made from them."""
    found = {"dense": dense, "cohort": phantom.root, "recipe": recipe, "out": tmp_path / "out", "tmp": tmp_path}
    found["empty"] = tmp_path / "empty"
    found["empty"].mkdir()
    altered = shutil.copytree(dense, tmp_path / "altered")
    with (altered / "models" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    found["altered"] = altered
    broken = shutil.copytree(phantom.root, tmp_path / "broken")
    for path in (broken / "dicom").iterdir():
        path.write_bytes(b"not DICOM at all" * 20)
    found["broken"] = broken
    for name in ("taken", "locked"):
        (tmp_path / name).mkdir()
    (tmp_path / "taken" / "file").touch()
    found["taken"], found["file"] = tmp_path / "taken", tmp_path / "taken" / "file"
    (tmp_path / "typo.toml").write_text(recipe.read_text().replace("epochs", "epoch"))
    (tmp_path / "bad.toml").write_text("name = ")
    (tmp_path / "unknown.toml").write_text(recipe.read_text().replace('"alexnet"', '"alexnot"'))
    found |= {name: tmp_path / f"{name}.toml" for name in ("typo", "bad", "unknown")}
    return found


PROVE = ["validate", "{dense}", "--reference", "{dense}", "--cohort"]
MISTAKES = [
    (["cohort", "check", "{tmp}/absent"], "is not a cohort"),
    (["cohort", "check", "{empty}"], "is not a cohort"),
    (["cohort", "import", "{empty}", "{out}"], "no labels are given"),
    (["cohort", "import", "{empty}", "{out}", "--labels", "folders"], "two classes or more"),
    (["cohort", "import", "{tmp}/absent", "{out}"], "does not exist"),
    (["cohort", "phantom", "{taken}", "--patients", "16", "--slices", "1"], "stands there already"),
    (["cohort", "phantom", "{file}/under", "--patients", "16", "--slices", "1"], "cannot write"),
    (["train", "{tmp}/absent.toml", "--cohort", "{cohort}", "--out", "{out}"], "does not exist"),
    (["train", "{bad}", "--cohort", "{cohort}", "--out", "{out}"], "is not TOML"),
    (["train", "{typo}", "--cohort", "{cohort}", "--out", "{out}"], "unexpected keyword argument 'epoch'"),
    (["train", "{unknown}", "--cohort", "{cohort}", "--out", "{out}"], "'alexnot' is unknown: expected one of alexnet"),
    (["train", "{recipe}", "--cohort", "{broken}", "--out", "{out}"], "is not a DICOM file"),
    (["compress", "{empty}", "--cohort", "{cohort}", "--out", "{out}"], "is not a bundle"),
    (["compress", "{altered}", "--cohort", "{cohort}", "--out", "{out}"], "was altered: its sha256"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--method", "magic"],
     "expected one of hscc, paper, svd"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--budget", "flops=0.5x"], "below 1x"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--budget", "6"], "expected flops=6x"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--budget", "flops=9999x", "--method", "svd"],
     "out of reach: the most that this network and method can give is flops="),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--cells", "3y3"], "expected rows x columns"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--regions", "0"], "expected 1 or more"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--structures", "magic"], "expected some of"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--confidence", "95"], "give --max-drop"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--max-kl", "-1"], "expected 0 or more"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--max-kl", "1", "--budget", "flops=2x"],
     "give one of --budget"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--plan", "{tmp}/no.json"], "does not exist"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--currency", "euro"], "expected one of flops"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{out}", "--images", "0"], "calibration images"),
    (["compress", "{dense}", "--cohort", "{cohort}", "--out", "{taken}", "--method", "svd"], "stands there already"),
    (["export", "{empty}", "--cohort", "{cohort}"], "is not a bundle"),
    (["export", "{dense}", "--cohort", "{cohort}", "--precision", "fp8"], "precision 'fp8' is unknown"),
    (["export", "{dense}", "--cohort", "{broken}"], "is not a DICOM file"),
    (["build", "{dense}", "--precision", "int3"], "precision 'int3' is unknown"),
    (["build", "{dense}", "--cache", "{file}"], "cannot write"),
    (["validate", "{dense}", "--reference", "{tmp}/absent", "--cohort", "{cohort}"], "is not a bundle"),
    ([*PROVE, "{cohort}", "--split", "dev"],
     "has no split 'dev'"),
    ([*PROVE, "{cohort}", "--runtime", "cuda"],
     "expected one of eager"),
    ([*PROVE, "{broken}", "--seconds", "0"], "is not a DICOM file"),
    (["serve", "{tmp}/absent.toml"], "does not exist"),
    (["serve", "{bad}"], "is not TOML"),
    (["serve", "{recipe}"], "line 12: unknown key 'decision': expected one of state, model"),
    (["demo", "--out", "{taken}"], "is not empty"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "sentence"), MISTAKES, ids=[" ".join(words[:2]) + ": " + text for words, text in MISTAKES]
)
def test_a_mistake_is_one_sentence(words, sentence, place, monkeypatch, capsys):
    before = sorted(path.name for path in place["tmp"].iterdir())
    code, _, err = run(*(word.format(**place) for word in words), monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and sentence in err, err
    assert err.startswith("error: ") and "Traceback" not in err and len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in place["tmp"].iterdir()) == before, "something half-written was left"


def test_a_cohort_with_one_class_is_refused(tmp_path, recipe, pictures_of_one_class, monkeypatch, capsys):
    words = ("train", recipe, "--cohort", pictures_of_one_class, "--out", tmp_path / "out")
    code, _, err = run(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "has 1 class" in err
    code, _, err = run("cohort", "check", pictures_of_one_class, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "has 1 class" in err


@pytest.fixture
def pictures_of_one_class(tmp_path):
    """A cohort whose table was cut down to one class by hand."""
    root = tmp_path / "one"
    write_phantom(root, patients=16, slices=1, size=16)
    head, *rows = (root / "instances.csv").read_text().splitlines()
    (root / "instances.csv").write_text("\n".join([head, *(row for row in rows if ",ring," in row)]) + "\n")
    toml = (root / "cohort.toml").read_text()
    start = toml.index("classes = [")
    stop = toml.index("]", start)
    (root / "cohort.toml").write_text(toml[:start] + 'classes = ["ring"' + toml[stop:])
    return root


def test_a_cohort_with_faults_exits_1(place, monkeypatch, capsys):
    code, out, err = run("cohort", "check", place["broken"], "--json", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 1 and err.rstrip().endswith("then check again")
    assert len(json.loads(out)["unreadable"]) == 120


def test_a_port_in_use_and_an_unwritable_state_are_told(place, monkeypatch, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        text = (
            f'state = "{{state}}"\nreserve_mib = 1\n[[model]]\nbundle = "{place["dense"]}"\n'
            f"[dicom]\nport = {taken.getsockname()[1]}\n"
        )
        config = place["tmp"] / "serve.toml"
        for state, sentence in (("state", "cannot be opened"), (str(place["file"]), "cannot write")):
            config.write_text(text.format(state=state))
            done = subprocess.run(
                [sys.executable, "-m", "hscc_edge", "serve", str(config)], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    """The kernel.s own full device gives ENOSPC in the middle of a write."""
    code = (
        "import errno, os, sys\n"
        "from pathlib import Path\n"
        "from hscc_edge import durable\n"
        "from hscc_edge.errors import StorageError\n"
        "try:\n"
        "    with durable.new_directory(Path(sys.argv[1])) as draft:\n"
        "        (draft / 'part').write_bytes(b'x')\n"
        "        with open('/dev/full', 'wb') as full:\n"
        "            full.write(b'y' * 100000)\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert "the disk is full" in done.stdout and not list(tmp_path.iterdir())


def test_json_is_one_object_and_nothing_else(tmp_path, monkeypatch, capsys):
    words = ("cohort", "phantom", tmp_path / "c", "--patients", 16, "--slices", 1, "--size", 16, "--json")
    code, out, _ = run(*words, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 0 and out.count("\n") == 1 and json.loads(out)["images"] == 16


def test_compression_through_the_command_line(place, monkeypatch, capsys):
    words = ("compress", place["dense"], "--cohort", place["cohort"], "--out", place["out"], "--budget", "flops=3x",
             "--images", 16, "--json")  # fmt: skip
    code, out, _ = run(*words, monkeypatch=monkeypatch, capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["flops"] <= found["dense_flops"] / 3
    again = ("compress", place["out"], "--cohort", place["cohort"], "--out", place["tmp"] / "again")
    code, _, err = run(*again, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and "compressed already" in err
