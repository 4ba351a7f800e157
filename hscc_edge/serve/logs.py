"""The daemon's log: its own lines, as text or as JSON; of what other packages log, warn of or raise, only the kind.

Every module logs `event=NAME key=value ...` by the standard logging; here each line becomes time (UTC), level, process,
event and fields. Lines go to stderr, or to a file that any number of processes add to: each line is one write to a
file opened for appending, and a file that was put aside is opened anew.
"""

from __future__ import annotations

import logging
import logging.handlers
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from hscc_edge.errors import extra
from hscc_edge.serve.config import Log

LOG = logging.getLogger(__name__)
OWN = "hscc_edge"
FIELD = re.compile(r"(?:^|\s)([a-z][a-z0-9_]*)=")
QUIET_S = 60.0
TO_STREAM = Log()


@contextmanager
def logging_to(stream: TextIO, config: Log = TO_STREAM) -> Iterator[None]:
    """Send the log to a stream, or to the configuration's file, for a process that does nothing else.

    What other packages log, warn of or raise may name a patient or a UID: of it only the kind is told.
    """
    handler = _handler(stream, config)
    root, shown = logging.getLogger(), logging.raiseExceptions
    hooks = threading.excepthook, sys.excepthook, sys.unraisablehook
    logging.raiseExceptions = False  # a line that cannot be written is not shown on stderr with its arguments
    logging.captureWarnings(True)
    threading.excepthook = _on_thread_error
    sys.excepthook = _on_error
    sys.unraisablehook = _on_unraisable
    root.addHandler(handler)
    logging.getLogger(OWN).setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        logging.captureWarnings(False)
        threading.excepthook, sys.excepthook, sys.unraisablehook = hooks
        logging.raiseExceptions = shown


def fields(text: str) -> dict[str, str]:
    """The fields of a line such as `event=kept bytes=12`; what stands before the first is `text`."""
    parts = FIELD.split(text)
    found = {"text": parts[0].strip()} if parts[0].strip() else {}
    return found | {name: value.strip() for name, value in zip(parts[1::2], parts[2::2], strict=True)}


def put_aside(config: Log) -> bool:
    """Begin a new log file where this one is full; FILE.1 is the youngest of those kept."""
    path = config.file
    try:
        if path is None or path.stat().st_size < config.max_mib << 20:
            return False
        if config.keep == 0:
            os.truncate(path, 0)
            return True
        for number in range(config.keep - 1, 0, -1):
            if (old := Path(f"{path}.{number}")).exists():
                old.replace(f"{path}.{number + 1}")
        path.replace(f"{path}.1")
    except FileNotFoundError:
        return False
    return True


def _handler(stream: TextIO, config: Log) -> logging.Handler:
    handler: logging.Handler = logging.StreamHandler(stream)
    if config.file is not None:
        handler = kept = logging.handlers.WatchedFileHandler(config.file, encoding="utf-8")
        if kept.stream is not None:
            os.fchmod(kept.stream.fileno(), 0o640)  # not by its name, which may stand for another file by now
    handler.addFilter(_Foreign())
    handler.setFormatter(_formatter(config.format))
    return handler


def _formatter(form: str) -> logging.Formatter:
    if form == "text":
        return logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    with extra("device"):
        import structlog
    steps: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _split,
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=steps,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()],
    )


def _split(logger: object, name: str, content: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor: the text's fields become the object's own."""
    told = fields(str(content.pop("event", "")))
    process = multiprocessing.current_process().name
    own = {
        "time": content.pop("time"),
        "level": content.pop("level"),
        "process": "supervisor" if process == "MainProcess" else process,
    }
    return {**own, **{f"about_{key}" if key in own else key: value for key, value in told.items()}, **content}


class _Foreign:
    """Lets the package's own lines pass; of others' warnings and errors a line a minute says that there were some."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        package = record.name.partition(".")[0]
        if package == OWN:
            record.exc_info = record.exc_text = record.stack_info = None
            return True
        now = time.monotonic()
        if record.levelno < logging.WARNING or now - self._told.get(package, -QUIET_S) < QUIET_S:
            return False
        self._told[package] = now
        LOG.warning("event=library_told library=%s severity=%s", package, record.levelname.lower())
        return False


def _on_thread_error(arguments: threading.ExceptHookArgs) -> None:
    LOG.error("event=thread_failed reason=%s", arguments.exc_type.__name__)


def _on_error(kind: type[BaseException], error: BaseException, trace: object) -> None:
    LOG.critical("event=process_failed reason=%s", kind.__name__)


def _on_unraisable(arguments: Any) -> None:
    LOG.error("event=cleanup_failed reason=%s", arguments.exc_type.__name__)
