"""What leaves the house: the device image passes its linter, every device dependency has a wheel for the device."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLATFORMS = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in (17, 27, 28, 31, 34))]


def test_the_device_image_passes_hadolint():
    linter = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([linter, ROOT / "Dockerfile.jetson"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.network
@pytest.mark.parametrize("python", ["3.10", "3.12"])
def test_every_device_dependency_has_a_wheel_for_aarch64(python, tmp_path):
    wanted = []
    for line in importlib.metadata.requires("hscc-edge") or ():
        if "extra ==" not in line or re.search(r"extra == ['\"]device['\"]", line):
            wanted.append(line.partition(";")[0].strip())
    report = tmp_path / "report.json"
    options = [option for platform in PLATFORMS for option in ("--platform", platform)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--only-binary=:all:",
         "--target", str(tmp_path / "target"), "--python-version", python, "--implementation", "cp",
         "--report", str(report), *options, *wanted],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {item["metadata"]["name"].lower() for item in json.loads(report.read_text())["install"]}
    assert {"numpy", "pydicom", "pynetdicom", "highdicom", "onnxruntime"} <= names
    assert not names & {"torch", "monai"}


def test_data_files_are_in_the_package():
    from hscc_edge.validate import report

    templates = Path(report.__file__).parent / "templates"
    assert [path.name for path in templates.iterdir()] == ["report.html.j2"]
