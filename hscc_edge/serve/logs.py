"""The daemon's log on a stream: its own lines; of what others log, warn of or raise, only the kind is told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

LOG = logging.getLogger(__name__)


@contextmanager
def logging_to(stream: TextIO) -> Iterator[None]:
    """Send the daemon's own log lines to a stream, for a process that does nothing else.

    What other packages log, warn of or raise in threads may name a patient or a UID: of it only the kind is told.
    """
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addHandler(logging.NullHandler())
    threading.excepthook = _on_thread_error
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("hscc_edge")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        threading.excepthook = threading.__excepthook__
        logging.captureWarnings(False)


def _on_thread_error(arguments: threading.ExceptHookArgs) -> None:
    LOG.error("event=thread_failed reason=%s", arguments.exc_type.__name__)
