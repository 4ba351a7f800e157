"""An audit repository for the tests: a real TLS server that takes RFC 5425 frames from clients of its authority."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hscc_edge.serve.config import Tls

HANDSHAKE_S = 10.0
LOOK_S = 0.1


class Receiver:
    """What a repository got, and whether it goes on reading."""

    def __init__(self, tls: Tls, port: int = 0) -> None:
        self.messages: list[bytes] = []
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tls.authorities)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_cert_chain(tls.certificate, tls.key)
        self._door = socket.create_server(("127.0.0.1", port))
        self.port = self._door.getsockname()[1]
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        """Hang up on everybody, as a machine that loses its power does not even do."""
        self._closed.set()
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._thread.join()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                plain, _ = self._door.accept()
            except OSError:
                return
            plain.settimeout(HANDSHAKE_S)
            try:
                client = self._context.wrap_socket(plain, server_side=True)
            except OSError:
                plain.close()
                continue
            client.settimeout(LOOK_S)
            with client, suppress(OSError):
                self._read(client)

    def _read(self, client: ssl.SSLSocket) -> None:
        buffer = b""
        while not self._closed.is_set():
            try:
                got = client.recv(65536)
            except TimeoutError:
                continue
            if not got:
                return
            buffer += got
            while b" " in buffer[:12]:
                length, _, rest = buffer.partition(b" ")
                if len(rest) < int(length):
                    break
                self.messages.append(rest[: int(length)])
                buffer = rest[int(length) :]


@contextmanager
def receiving(tls: Tls, port: int = 0) -> Iterator[Receiver]:
    """A repository that is closed in the end."""
    receiver = Receiver(tls, port)
    try:
        yield receiver
    finally:
        receiver.close()
