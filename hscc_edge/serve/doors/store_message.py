"""C-STORE's command set, read and written as bytes (PS3.7 sections 9.3.1 and E.1).

It goes by twice with each object; pydicom's and pynetdicom's ways to read and write one take as long as the rest.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

COMMAND_FIELD, MESSAGE_ID, DATA_SET_TYPE = 0x0100, 0x0110, 0x0800
SOP_CLASS, SOP_INSTANCE = 0x0002, 0x1000
STORE_RQ, STORE_RSP, NO_DATA_SET = 0x0001, 0x8001, 0x0101


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """What a sender says of the object that follows."""

    message_id: int
    context: int
    syntax: str
    sop_class: str
    sop: str = field(repr=False)


def store_request(command: bytes, context: int, syntax: str) -> StoreRequest | None:
    """A command set as a C-STORE request with a data set; None if it is anything else.

    Raises:
        ValueError, struct.error: if it is no command set.
    """
    found = _elements(command)
    if _number(found.get(COMMAND_FIELD)) != STORE_RQ or _number(found.get(DATA_SET_TYPE)) == NO_DATA_SET:
        return None
    message_id, sop_class, sop = found.get(MESSAGE_ID), found.get(SOP_CLASS), found.get(SOP_INSTANCE)
    if message_id is None or sop_class is None or sop is None:
        raise ValueError("incomplete request")
    number = _number(message_id)
    if number is None:
        raise ValueError("message ID")
    return StoreRequest(number, context, str(syntax), _text(sop_class), _text(sop))


def store_response(request: StoreRequest, status: int) -> bytes:
    """The command set that answers a request."""
    elements = b"".join(
        (
            _uid(SOP_CLASS, request.sop_class), _short(COMMAND_FIELD, STORE_RSP), _short(0x0120, request.message_id),
            _short(DATA_SET_TYPE, NO_DATA_SET), _short(0x0900, status), _uid(SOP_INSTANCE, request.sop),
        )
    )  # fmt: skip
    return struct.pack("<HHII", 0, 0, 4, len(elements)) + elements


def _elements(command: bytes) -> dict[int, bytes]:
    """Element number -> value, of group 0000 in Implicit VR Little Endian."""
    found, position = dict[int, bytes](), 0
    while position < len(command):
        group, element, length = struct.unpack_from("<HHI", command, position)
        end = position + 8 + length
        if group != 0 or end > len(command):
            raise ValueError("no command set")
        found[element] = command[position + 8 : end]
        position = end
    return found


def _number(value: bytes | None) -> int | None:
    return None if value is None or len(value) != 2 else int.from_bytes(value, "little")


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace").rstrip("\0 ")


def _short(element: int, value: int) -> bytes:
    return struct.pack("<HHIH", 0, element, 2, value)


def _uid(element: int, uid: str) -> bytes:
    value = uid.encode("ascii", "replace")
    value += b"\0" * (len(value) % 2)
    return struct.pack("<HHI", 0, element, len(value)) + value
