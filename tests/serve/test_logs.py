"""The log: one JSON object a line from any number of processes, and no text of other packages in it."""

import io
import json
import logging
import logging.handlers
import multiprocessing
import stat
import sys
import threading
import warnings
from datetime import datetime

import pytest

from hscc_edge.serve.config import Log
from hscc_edge.serve.logs import fields, logging_to, put_aside

LOG = logging.getLogger("hscc_edge.serve.test")
SECRET = "DOE^JANE"


def lines(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_becomes_an_object():
    stream = io.StringIO()
    with logging_to(stream, Log(format="json")):
        LOG.info("event=kept instance=%s reason=%s", "ab12", "disk full, try later")
        LOG.error("event=process_died process=%s exit=%s", "work", -9)
    first, second = lines(stream.getvalue())
    assert datetime.fromisoformat(first.pop("time")).utcoffset().total_seconds() == 0
    assert first == {
        "level": "info", "process": "supervisor", "event": "kept", "instance": "ab12", "reason": "disk full, try later",
    }  # fmt: skip
    assert (second["level"], second["process"], second["about_process"]) == ("error", "supervisor", "work")


def test_text_is_one_line_with_its_level():
    stream = io.StringIO()
    with logging_to(stream):
        LOG.warning("event=refused status=%s", "A700")
    assert stream.getvalue().endswith("WARNING event=refused status=A700\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("event=a b=1", {"event": "a", "b": "1"}),
        ("plain words", {"text": "plain words"}),
        ("event=a reason=port 1=2 is odd", {"event": "a", "reason": "port 1=2 is odd"}),
        ("", {}),
    ],
)
def test_fields(text, found):
    assert fields(text) == found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("form", ["text", "json"])
def test_what_others_tell_stays_out(form, capsys):
    stream = io.StringIO()

    def fail() -> None:
        raise ValueError(SECRET)

    with logging_to(stream, Log(format=form)):
        other = logging.getLogger("pydicom.charset")
        for _ in range(50):
            other.warning("unknown encoding of %s", SECRET)
        other.info("info %s", SECRET)
        try:
            fail()
        except ValueError:
            logging.getLogger("asyncio").exception("Task of %s", SECRET)
            LOG.exception("event=failed")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn(SECRET, UserWarning, stacklevel=1)
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        sys.excepthook(ValueError, ValueError(SECRET), None)
        LOG.info("event=odd value=%d", SECRET)  # an error of the logging call itself
    captured = capsys.readouterr()
    assert SECRET not in stream.getvalue() + captured.err + captured.out
    told = [line for line in stream.getvalue().splitlines() if "library_told" in line]
    assert len(told) == 3 and "thread_failed" in stream.getvalue() and "ValueError" in stream.getvalue()
    assert "Traceback" not in stream.getvalue()


def _write(path, number):
    with logging_to(sys.stderr, Log(format="json", file=path)):
        for count in range(number):
            LOG.info("event=kept count=%d filler=%s", count, "x" * 200)


def test_a_file_that_is_put_aside_while_it_is_opened_is_opened_all_the_same(tmp_path, monkeypatch):
    path, moved = tmp_path / "serve.log", tmp_path / "serve.log.1"

    class Moved(logging.handlers.WatchedFileHandler):
        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            path.rename(moved)

    monkeypatch.setattr(logging.handlers, "WatchedFileHandler", Moved)
    with logging_to(sys.stderr, Log(format="json", file=path)):
        pass
    assert stat.S_IMODE(moved.stat().st_mode) == 0o640


def test_processes_share_a_file_that_is_put_aside(tmp_path):
    path = tmp_path / "serve.log"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, 500), name=f"intake-{n}") for n in range(4)]
    for writer in writers:
        writer.start()
    small, moved = Log(format="json", file=path, max_mib=0, keep=4), 0
    while any(writer.is_alive() for writer in writers):
        if moved < 3 and path.exists() and path.stat().st_size > 40_000:
            moved += put_aside(small)
        writers[0].join(0.002)
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    every = [line for file in tmp_path.iterdir() for line in lines(file.read_text())]
    assert len(every) == 2000 and {line["process"] for line in every} == {f"intake-{n}" for n in range(4)}
    assert moved >= 1 and (tmp_path / "serve.log.1").exists()


def test_only_so_many_are_kept(tmp_path):
    path = tmp_path / "serve.log"
    config = Log(file=path, max_mib=0, keep=2)
    assert not put_aside(config) and not put_aside(Log())
    for number in range(5):
        path.write_text(str(number))
        assert put_aside(config)
    assert sorted((file.name, file.read_text()) for file in tmp_path.iterdir()) == [
        ("serve.log.1", "4"), ("serve.log.2", "3"),
    ]  # fmt: skip
    path.write_text("5")
    assert put_aside(Log(file=path, max_mib=0, keep=0)) and path.read_text() == ""
    assert not put_aside(Log(file=path, max_mib=1))
