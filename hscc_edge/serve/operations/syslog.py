"""Syslog messages (RFC 5424) to an audit repository over TLS (RFC 5425); there is no other transport.

The protocol has no acknowledgement. A message counts as taken when the repository's TCP has confirmed its last byte and
the connection still stands; so one may come twice, and one that the repository's own machine loses is lost.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import ssl
import struct
import termios
import time
from collections.abc import Sequence
from datetime import datetime, timezone

from hscc_edge.serve.config import Tls
from hscc_edge.serve.tls import client_context

PRIORITY = 10 * 8 + 5  # security or authorisation, normal but significant: PS3.15 A.6
MESSAGE_ID = "DICOM+RFC3881"
APPLICATION = "hscc-edge"
BOM = b"\xef\xbb\xbf"
POLL_S = 0.02


def frame(content: bytes, at: float) -> bytes:
    """One XML message with its header, and its length before that."""
    moment = datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    host = re.sub(r"[^\x21-\x7e]", "_", socket.gethostname())[:255] or "-"
    header = f"<{PRIORITY}>1 {moment} {host} {APPLICATION} {os.getpid()} {MESSAGE_ID} - "
    message = header.encode("ascii") + BOM + content
    return str(len(message)).encode() + b" " + message


class Sender:
    """One connection to a repository, opened when it is needed and again when it is dead."""

    def __init__(self, host: str, port: int, tls: Tls, timeout_s: float = 10.0) -> None:
        self._host, self._port, self._tls, self._timeout_s = host, port, tls, timeout_s
        self._door: ssl.SSLSocket | None = None

    def deliver(self, frames: Sequence[bytes]) -> None:
        """Send, and wait until the repository's machine has all of it.

        Raises:
            OSError: if it has not; then nothing is known of any of these messages.
        """
        if self._door is not None and not _alive(self._door):
            self.close()
        if self._door is None:
            self._door = self._open()
        try:
            self._door.settimeout(self._timeout_s)
            self._door.sendall(b"".join(frames))
            self._wait(self._door)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Hang up."""
        if self._door is not None:
            self._door.close()
            self._door = None

    def _open(self) -> ssl.SSLSocket:
        plain = socket.create_connection((self._host, self._port), self._timeout_s)
        try:
            return client_context(self._tls).wrap_socket(plain, server_hostname=self._host)
        except BaseException:
            plain.close()
            raise

    def _wait(self, door: ssl.SSLSocket) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            (left,) = struct.unpack("i", fcntl.ioctl(door.fileno(), termios.TIOCOUTQ, b"\0" * 4))
            if not _alive(door):  # then nothing of what is left will ever be taken
                raise ConnectionResetError("the audit repository has hung up")
            if not left:
                return
            if time.monotonic() > deadline:
                raise TimeoutError("the audit repository does not take what was sent")
            time.sleep(POLL_S)


def _alive(door: ssl.SSLSocket) -> bool:
    """Whether the other side has neither hung up nor refused us; TLS 1.3 tells a refused certificate only now."""
    door.settimeout(0)
    try:
        return bool(door.recv(4096))
    except (ssl.SSLWantReadError, BlockingIOError):
        return True
    except OSError:
        return False
