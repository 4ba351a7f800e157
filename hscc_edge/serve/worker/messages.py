"""What the worker and its processes say to each other: a JSON object, and bytes that it tells of. Never objects."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from hscc_edge.serve.worker.child import Child, read_all, write_all

SIZES = struct.Struct("<IQ")  # bytes of the JSON object, of what follows it
MOST_JSON, MOST_BYTES = 1 << 26, 1 << 34
Told = dict[str, Any]
Parts = Sequence[bytes | memoryview]


def ask(child: Child, told: Mapping[str, Any], *parts: bytes) -> None:
    """Ask a process that is waiting to be asked; raises what `Child.ask` raises."""
    child.ask(b"".join((*_packed(told, parts), *parts)))


def receive(child: Child, patience_s: float) -> tuple[Told, bytearray]:
    """The next message of a process; raises what `Child.receive` raises."""
    until = time.monotonic() + patience_s
    told, size = SIZES.unpack(child.receive(SIZES.size, until))
    if told > MOST_JSON or size > MOST_BYTES:
        child.malformed()
    try:
        found = json.loads(child.receive(told, until))
    except ValueError:
        child.malformed()
    if not isinstance(found, dict):
        child.malformed()
    return found, child.receive(size, until)


def read(asks: int) -> tuple[Told, bytes] | None:
    """In the process: what it is asked; None when the parent has closed its end."""
    head = read_all(asks, SIZES.size)
    if len(head) < SIZES.size:
        return None
    told, size = SIZES.unpack(head)
    return json.loads(read_all(asks, told)), read_all(asks, size)


def write(answers: int, told: Mapping[str, Any], *parts: bytes | memoryview) -> None:
    """In the process: a message."""
    write_all(answers, *_packed(told, parts), *parts)


def _packed(told: Mapping[str, Any], parts: Parts) -> tuple[bytes, bytes]:
    content = json.dumps(told).encode()
    return SIZES.pack(len(content), sum(memoryview(part).nbytes for part in parts)), content
