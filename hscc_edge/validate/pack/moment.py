"""The one moment that stands in a pack or a signature: now, or the one that was asked for."""

from __future__ import annotations

import datetime

from hscc_edge.errors import InputError


def moment(text: str | None) -> str:
    """ISO 8601 in UTC, to the second.

    Args:
        text: ISO 8601 with an offset or Z; None for now.

    Raises:
        InputError: if it is not.
    """
    if text is None:
        found = datetime.datetime.now(datetime.timezone.utc)
    else:
        try:
            found = datetime.datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
        except ValueError as error:
            raise InputError(_wrong(text)) from error
        if found.tzinfo is None:
            raise InputError(_wrong(text))
    return found.astimezone(datetime.timezone.utc).replace(microsecond=0).isoformat().replace("+00:00", "Z")


def _wrong(text: str) -> str:
    return f"--timestamp is {text!r}: expected ISO 8601 with its offset, such as 2026-11-25T08:00:00Z"
