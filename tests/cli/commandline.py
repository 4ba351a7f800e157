"""The command line, run in this process."""

import sys

from hscc_edge.cli import main


def run(monkeypatch, capsys, *words: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["hscc-edge", *map(str, words)])
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    streams = capsys.readouterr()
    return code, streams.out, streams.err
