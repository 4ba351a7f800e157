"""A small C-STORE provider that keeps what it gets in a directory: the demo's and the tests' archive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.data.pseudonym import pseudonym
from hscc_edge.errors import extra

with extra("device"):
    from pynetdicom import AE, AllStoragePresentationContexts, evt


@contextmanager
def receive(directory: Path, ae_title: str = "ARCHIVE", port: int = 0) -> Iterator[int]:
    """Listen on loopback while the body runs; yields the port. The same object sent twice is kept once."""
    directory.mkdir(parents=True, exist_ok=True)

    def on_store(event: Any) -> int:
        name = pseudonym(str(event.request.AffectedSOPInstanceUID), b"receiver")
        durable.write_bytes(directory / f"{name}.dcm", event.encoded_dataset())
        return 0x0000

    entity = AE(ae_title=ae_title)
    entity.supported_contexts = AllStoragePresentationContexts
    server: Any = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
