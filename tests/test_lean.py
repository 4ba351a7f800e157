"""Optional packages are hidden from what is imported meanwhile, and from nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hscc_edge.lean import same_python, without


def test_a_package_is_hidden_inside_and_there_again_outside(monkeypatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with without("wave"), pytest.raises(ModuleNotFoundError):
        import wave
    import wave

    with without("wave"):
        import wave as still

    assert still is wave


def test_the_daemon_starts_without_what_it_never_uses(tmp_path):
    """pydicom itself imports these if it can."""
    code = (
        "import sys; from hscc_edge.serve.__main__ import main\n"
        "try: main([sys.argv[1]])\n"
        "except SystemExit as error: assert error.code == 2, error\n"
        "import hscc_edge.serve.daemon\n"
        "names = 'gdcm openjpeg requests tqdm highdicom scipy torch uvicorn typer rich pydantic'.split()\n"
        "print(*(name for name in names if name in sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "none.toml")], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""


def test_serve_becomes_the_daemon_and_keeps_its_words(tmp_path, dense):
    config = tmp_path / "serve.toml"
    config.write_text(f'state = "state"\nreserve_mib = 1\n[[model]]\nbundle = "{dense}"\n[dicom]\nport = 0\n')
    words = [Path(sys.executable).with_name("hscc-edge"), "serve", config, "--until-idle", "0.5", "--json"]
    if sys.version_info >= (3, 11):  # what lies where it is started is not imported
        (tmp_path / "numpy.py").write_text("raise SystemExit('a stranger')")
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as serving:
        out, err = serving.communicate(timeout=120)
    assert serving.returncode == 0 and json.loads(out) == {"stopped": True}, err
    assert "event=started" in err and "event=stopped" in err
    assert json.loads((tmp_path / "state" / "daemon.json").read_text())["pid"] == serving.pid


def test_the_same_python_imports_the_same_code(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("print('here')")
    monkeypatch.syspath_prepend(tmp_path)
    command, environment = same_python("-c", "import only_here")
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == "here\n"
