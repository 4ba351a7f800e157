"""What leaves the house: the wheel's files, the device image, a wheel for the device of every device dependency."""

import json
import re
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.main import get_command

from hscc_edge.cli import app

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "Dockerfile.jetson"
# Ubuntu 22.04 of JetPack 6 has glibc 2.35.
PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in (17, 24, 26, 27, 28, 31, 34, 35)))


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the device image, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", IMAGE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_device_image_passes_hadolint():
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, IMAGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_device_image_runs_as_nobody_special_and_watches_itself():
    found = dict(instructions())
    assert found["USER"] not in ("root", "0") and found["FROM"] == "${BASE}"
    serve = get_command(app).commands["serve"]
    probe = json.loads(found["HEALTHCHECK"].partition("CMD ")[2])
    assert probe[:2] == ["hscc-edge", "serve"]
    assert "--health" in probe and any("--health" in option.opts for option in serve.params)
    assert json.loads(found["CMD"])[0] == "serve"


def test_the_device_image_installs_the_device_extra_alone_and_leaves_no_package_lists():
    runs = [rest for name, rest in instructions() if name == "RUN"]
    extras = [extra for run in runs for extra in re.findall(r"\.\[([\w,]+)\]", run)]
    assert extras == ["device"]
    for run in runs:
        assert "apt-get install" not in run or "rm -rf /var/lib/apt/lists/*" in run


@pytest.mark.network
def test_the_wheel_carries_the_package_and_nothing_else(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("hscc_edge-*-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "hscc_edge").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "hscc_edge/validate/templates/report.html.j2" in package
    assert {name for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith("licenses/LICENSE") for name in names)


def applies(line: str, target: dict[str, str]) -> bool:
    marker = Requirement(line).marker
    return marker is None or marker.evaluate(target)


def resolve(wanted: list[str], python: str, scratch: Path) -> dict[str, list[str]]:
    """Names of the wheels that pip chooses for the device, with what each requires; what it chose before stays so."""
    report, pins = scratch / "report.json", scratch / "pins.txt"
    before = [item["metadata"] for item in json.loads(report.read_text())["install"]] if report.exists() else []
    pins.write_text("".join(f"{item['name']}=={item['version']}\n" for item in before))
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--only-binary=:all:",
         "--target", str(scratch / "target"), "--python-version", python, "--implementation", "cp",
         "--report", str(report), "--constraint", str(pins),
         *(word for platform in PLATFORMS for word in ("--platform", platform)), *wanted],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chosen: list[dict[str, Any]] = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {canonicalize_name(item["name"]): item.get("requires_dist", []) for item in chosen}


def lacking(chosen: dict[str, list[str]], target: dict[str, str]) -> list[str]:
    """Requirements that hold on the device but that pip, which reads markers as of this machine, left out."""
    lines = [line for required in chosen.values() for line in required if applies(line, target)]
    return [line.partition(";")[0] for line in lines if canonicalize_name(Requirement(line).name) not in chosen]


@pytest.mark.network
@pytest.mark.parametrize(("python", "cuda"), [("3.10", 12), ("3.12", 13)], ids=["JetPack-6", "JetPack-7"])
def test_every_device_dependency_has_a_wheel_for_aarch64(python, cuda, tmp_path):
    target = {
        "extra": "",
        "python_version": python,
        "python_full_version": f"{python}.0",
        "platform_machine": "aarch64",
    }
    needed = [line for line in requires("hscc-edge") or () if applies(line, {**target, "extra": "device"})]
    wanted = [line.partition(";")[0].strip() for line in needed] + [f"cuda-bindings=={cuda}.*"]
    chosen = resolve(wanted, python, tmp_path)
    if left_out := lacking(chosen, target):
        chosen |= resolve(left_out, python, tmp_path)
    assert not lacking(chosen, target)
    assert chosen.keys() >= {"numpy", "pydicom", "pynetdicom", "highdicom", "onnxruntime", "cuda-bindings"}
    assert not chosen.keys() & {"torch", "monai"}
