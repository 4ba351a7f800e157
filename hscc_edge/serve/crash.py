"""Named places at which a test lets the daemon die as a power cut would: the steps between which nothing may be lost.

Nothing happens unless HSCC_EDGE_CRASH is set to NAME:COUNT; then the whole process group is killed by SIGKILL when
NAME is reached for the COUNTth time in one process.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "object-received", "draft-synced", "draft-renamed", "directory-synced", "receipt-committed", "reply-ready",
    "study-claimed", "study-decoded", "study-inferred", "report-built", "study-finished",
    "delivery-begun", "delivery-answered", "delivery-noted", "commitment-asked", "commitment-answered",
    "commitment-reported", "model-installed", "model-switched", "removal-noted", "files-removed",
)  # fmt: skip

_ASKED, _, _COUNT = os.environ.get("HSCC_EDGE_CRASH", "").partition(":")
_left = int(_COUNT) if _COUNT.isdecimal() else 1


def crash_point(name: str) -> None:
    """Die here if a test asks for it."""
    global _left
    if name != _ASKED:
        return
    _left -= 1
    if _left <= 0:
        os.killpg(0, signal.SIGKILL)
