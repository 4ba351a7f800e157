"""Optional packages are hidden from what is imported meanwhile, and from nothing else."""

import subprocess
import sys

import pytest

from hscc_edge.lean import without


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
