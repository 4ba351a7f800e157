"""Without the extras: every module imports or raises the one clear error, every verb helps or says what to install."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "hscc_edge").rglob("*.py")
    if path.stem != "__main__"
)
NEEDS = re.compile(r"^[A-Za-z0-9._-]+")


def core_distributions() -> set[str]:
    """The names that `pip install hscc-edge` alone would bring."""
    wanted, queue = set(), ["hscc-edge"]
    while queue:
        name = queue.pop()
        for line in importlib.metadata.requires(name) or ():
            if "extra ==" in line or "python_version <" in line:
                continue
            other = re.sub(r"[-_.]+", "-", NEEDS.match(line)[0]).lower()
            if other not in wanted and "platform_system" not in line:
                wanted.add(other)
                try:
                    importlib.metadata.distribution(other)
                except importlib.metadata.PackageNotFoundError:
                    continue
                queue.append(other)
    return wanted


@pytest.fixture(scope="session")
def bare(tmp_path_factory) -> dict[str, str]:
    """An environment whose only packages are the core ones, linked from this one."""
    site = tmp_path_factory.mktemp("site")
    for name in core_distributions():
        try:
            files = importlib.metadata.distribution(name).files or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            top = file.parts[0]
            source = Path(str(importlib.metadata.distribution(name).locate_file(top)))
            if top not in ("..", "__pycache__") and source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    (site / "hscc_edge").symlink_to(ROOT / "hscc_edge")
    return {**os.environ, "PYTHONPATH": str(site)}


def run(bare: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-S", *words], env=bare, capture_output=True, text=True, timeout=120)


def test_every_module_imports_or_names_its_extra(bare):
    code = (
        "import importlib, sys\n"
        "from hscc_edge.errors import MissingExtraError\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        importlib.import_module(name); print(name, 'ok')\n"
        "    except MissingExtraError as error:\n        print(name, 'extra', error)\n"
    )
    done = run(bare, "-c", code, *MODULES)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(MODULES)
    missing = [line for line in lines if " extra " in line]
    assert all(re.search(r"pip install 'hscc_edge\[(workstation|device)\]'", line) for line in missing)
    assert {line.split()[0] for line in missing} >= {"hscc_edge.model.train", "hscc_edge.serve.intake"}
    assert "hscc_edge.data.cohort ok" in lines and "hscc_edge.model.decision ok" in lines


@pytest.mark.parametrize(
    ("verb", "extra"),
    [
        (["train", "recipe.toml", "--cohort", "c", "--out", "o"], "workstation"),
        (["compress", "b", "--cohort", "c", "--out", "o"], "workstation"),
        (["serve", "serve.toml"], "device"),
    ],
)
def test_a_verb_without_its_extra_is_one_sentence(bare, tmp_path, verb, extra):
    done = run(bare, "-m", "hscc_edge", *verb)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the package '") and f"hscc_edge[{extra}]" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_core_verbs_run_without_extras(bare, tmp_path):
    cohort = tmp_path / "cohort"
    made = run(bare, "-m", "hscc_edge", "cohort", "phantom", str(cohort), "--patients", "16", "--slices", "1", "--json")
    assert made.returncode == 0, made.stderr
    assert run(bare, "-m", "hscc_edge", "cohort", "check", str(cohort)).returncode in (0, 1)
