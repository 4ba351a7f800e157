"""One thing that the doctor looked at: its state, what was seen, and how to mend it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "unknown", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen of one thing.

    Attributes:
        state: "fault" keeps the product from doing its work or keeping its data safe, "warning" costs speed or may
            become a fault, "unknown" could not be read.
        text: what was seen; no serial number, address, host name or path.
        advice: what to do; empty if nothing.
    """

    name: str
    state: State
    text: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """As one JSON object."""
        return asdict(self)
