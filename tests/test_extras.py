"""Without the extras: every module imports or raises the one clear error, every verb helps or says what to install."""

import os
import re
import subprocess
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.main import get_command

from hscc_edge.cli import app

ROOT = Path(__file__).resolve().parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "hscc_edge").rglob("*.py"))
    if path.stem != "__main__"
]
INSTALL = re.compile(
    r"the package '[\w.]+' is not installed, and this step needs it: "
    r"run pip install 'hscc_edge\[(workstation|device)\]'"
)
IMPORT_EACH = """
import importlib, sys
from hscc_edge.errors import MissingExtraError
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
        print(name, "ok")
    except MissingExtraError as error:
        print(name, "extra", error)
"""
VERBS = [
    (name, *inner)
    for name, command in get_command(app).commands.items()
    for inner in ([(sub,) for sub in command.commands] if hasattr(command, "commands") else [()])
]


def distributions(extra: str = "") -> set[str]:
    """What `pip install 'hscc-edge[extra]'` alone would bring on this machine."""
    wanted: set[str] = set()
    queue = [Requirement(line) for line in requires("hscc-edge") or ()]
    while queue:
        requirement = queue.pop()
        applies = requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", extra))
        if applies and requirement.name not in wanted:
            wanted.add(requirement.name)
            queue += [Requirement(line) for line in requires(requirement.name) or ()]
    return wanted


def link(name: str, site: Path) -> None:
    """Put a distribution's top-level files and folders into `site`."""
    found = distribution(name)
    for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
        source = Path(str(found.locate_file(top)))
        if source.exists() and not (site / top).exists():
            (site / top).symlink_to(source)


def site_of(root: Path, extra: str = "") -> Path:
    """A directory that is all a Python may see beside the standard library: this package, its core and one extra."""
    site = root / "site"
    site.mkdir()
    for name in distributions(extra):
        link(name, site)
    (site / "hscc_edge").symlink_to(ROOT / "hscc_edge")
    return site


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> Path:
    """The core packages alone."""
    return site_of(tmp_path_factory.mktemp("bare"))


def run(bare: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python without site-packages, in an empty directory of its own."""
    start = bare.parent / "cwd"
    start.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(bare), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-S", *words], env=env, cwd=start, capture_output=True, text=True, timeout=120
    )


def test_the_extras_are_really_hidden(bare):
    names = ["torch", "monai", "onnxruntime", "sklearn", "pynetdicom", "highdicom", "pytest", "tensorrt_rtx"]
    code = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    assert run(bare, "-c", code, *names).stdout.strip() == "[]"


def test_every_module_imports_or_names_its_extra(bare):
    done = run(bare, "-c", IMPORT_EACH, *MODULES)
    assert done.returncode == 0, done.stderr
    found = {name: rest for name, rest in (line.split(" ", 1) for line in done.stdout.splitlines())}
    assert list(found) == MODULES
    missing = {name for name, rest in found.items() if rest != "ok"}
    for name in missing:
        assert INSTALL.fullmatch(found[name].removeprefix("extra ")), f"{name}: {found[name]}"
    assert missing >= {"hscc_edge.model.train", "hscc_edge.compress.hscc", "hscc_edge.serve.doors.intake"}
    for name in ("errors", "durable", "bundle", "data.dicom", "data.cohort", "model.decision", "serve.journal", "cli"):
        assert f"hscc_edge.{name}" not in missing, f"hscc_edge.{name} belongs to the core: {found[f'hscc_edge.{name}']}"


def test_the_device_extra_is_enough_to_serve(tmp_path):
    site = site_of(tmp_path, "device")
    device = {name for name in MODULES if name.split(".")[1:2] in (["serve"], ["runtime"])} - {
        "hscc_edge.runtime.eager"
    }
    more = {"hscc_edge.export.engine", "hscc_edge.validate.predict", "hscc_edge.validate.bench"}
    more |= {"hscc_edge.validate.pack.verify", "hscc_edge.validate.pack.packages"}
    done = run(site, "-c", IMPORT_EACH, *sorted(device | more))
    assert done.returncode == 0, done.stderr
    assert all(line.endswith(" ok") for line in done.stdout.splitlines()), done.stdout
    assert "hscc_edge.serve.daemon ok" in done.stdout and not (site / "torch").exists()


def test_every_verb_helps_without_extras(bare):
    code = (
        "import sys\n"
        "from typer.main import get_command\n"
        "from hscc_edge.cli import app\n"
        "for verb in sys.argv[1:]:\n"
        "    get_command(app).main([*verb.split(), '--help'], prog_name='hscc-edge', standalone_mode=False)\n"
    )
    done = run(bare, "-c", code, *(" ".join(verb) for verb in VERBS))
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert f"Usage: hscc-edge {' '.join(verb)} " in done.stdout
    assert run(bare, "-m", "hscc_edge", "--help").returncode == 0


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        ("train {recipe} --cohort {cohort} --out o", "workstation"),
        ("compress {bundle} --cohort {cohort} --out o", "workstation"),
        ("export {bundle} --cohort {cohort}", "workstation"),
        ("validate {bundle} --reference {bundle} --cohort {cohort}", "device"),
        ("bench {bundle}", "device"),
        ("demo --out o --patients 16 --recipe {recipe}", "workstation"),
        ("serve serve.toml", "device"),
    ],
    ids=lambda words: words.partition(" ")[0],
)
def test_a_verb_without_its_extra_is_one_sentence(bare, dense, phantom, recipe, words, extra):
    words = words.format(bundle=dense, cohort=phantom.root, recipe=recipe)
    done = run(bare, "-m", "hscc_edge", *words.split())
    assert done.returncode == 2, done.stderr
    assert INSTALL.fullmatch(done.stderr.strip().removeprefix("error: ")), done.stderr
    assert f"hscc_edge[{extra}]" in done.stderr


def test_building_without_tensorrt_is_one_sentence(bare, dense):
    done = run(bare, "-m", "hscc_edge", "build", str(dense))
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and "TensorRT" in done.stderr


def test_core_verbs_run_without_extras(bare, tmp_path):
    cohort = str(tmp_path / "cohort")
    made = run(bare, "-m", "hscc_edge", "cohort", "phantom", cohort, "--patients", "16", "--slices", "1", "--json")
    assert made.returncode == 0, made.stderr
    checked = run(bare, "-m", "hscc_edge", "cohort", "check", cohort)
    assert checked.returncode in (0, 1) and "Traceback" not in checked.stderr
