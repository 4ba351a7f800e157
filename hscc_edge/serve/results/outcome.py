"""What became of one try to send an object, in the words that every kind of destination shares."""

from __future__ import annotations

from dataclasses import dataclass

TAKEN = "taken"  # the destination has it
REFUSED = "refused"  # it answered, and does not want this object
UNSUPPORTED = "unsupported"  # it takes no objects of this class
UNANSWERED = "unanswered"  # it was sent, and no answer came
BUSY = "busy"  # it answered that it can take nothing now
UNREACHABLE = "unreachable"  # nothing could be sent


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one try.

    Attributes:
        kind: TAKEN, REFUSED, UNSUPPORTED, UNANSWERED, BUSY or UNREACHABLE.
        reason: in words without identifiers, such as "status 0xc000".
    """

    kind: str
    reason: str = ""

    @property
    def counts(self) -> bool:
        """Whether the object itself may be at fault, so that its attempts are counted."""
        return self.kind in (REFUSED, UNSUPPORTED, UNANSWERED)

    @property
    def alive(self) -> bool:
        """Whether the destination answers as it should."""
        return self.kind in (TAKEN, REFUSED, UNSUPPORTED)
