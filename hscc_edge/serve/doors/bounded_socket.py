"""An association's socket: waits in the kernel instead of polling, reads whole PDUs at once, and for so long only."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import Any

from hscc_edge.errors import extra

with extra("device"):
    from pynetdicom.transport import AssociationSocket


class BoundedSocket(AssociationSocket):
    """What pynetdicom reads from and writes to, with a limit on time for each of its calls.

    pynetdicom's own reads 4 KiB at a time, waits for ever in the middle of a PDU, and uses select(2), which fails
    beyond 1024 open files.
    """

    def __init__(self, association: Any, connection: socket.socket, limit_s: float) -> None:
        """`limit_s`: longest time in which a PDU must have come in whole, or an answer be taken."""
        self._limit_s, self.patience_s = limit_s, 0.0
        self._waker = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(self._waker, select.POLLIN)
        connection.settimeout(limit_s)
        self._deadline = 0.0
        super().__init__(association, client_socket=connection)

    def wake(self) -> None:
        """Let `ready` return: another thread has something to be sent, or wants this one to end."""
        try:
            os.eventfd_write(self._waker, 1)
        except OSError:
            return

    @property
    def ready(self) -> bool:
        """Whether there is something to read, after at most `patience_s`."""
        if self.socket is None or not self._is_connected:
            return False
        pending = getattr(self.socket, "pending", None)
        if pending is not None and pending():
            return True
        found = dict(self._poll.poll(self.patience_s * 1000))
        if self._waker in found:
            os.eventfd_read(self._waker)
        return any(handle != self._waker for handle in found)

    def begin(self) -> None:
        """From now on counts the time in which the next PDU must be here."""
        self._deadline = time.monotonic() + self._limit_s

    def recv(self, nr_bytes: int) -> bytearray:
        """So many bytes, fewer if the connection ends.

        Raises:
            OSError: if it breaks, or the time is over.
        """
        if self.socket is None:
            return bytearray()
        content = bytearray(nr_bytes)
        view, read = memoryview(content), 0
        while read < nr_bytes:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.socket.settimeout(left)
            number = self.socket.recv_into(view[read:])
            if not number:
                break
            read += number
            self._acknowledge()
        view.release()
        self.socket.settimeout(self._limit_s)
        return content if read == nr_bytes else content[:read]

    def _acknowledge(self) -> None:
        """Acknowledge at once what was read (tcp(7)): a sender that waits for that before its next small packet, as
        Nagle's algorithm has it, otherwise loses 40 ms with each object."""
        if self.socket is not None:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def forget(self) -> None:
        """Close what belongs to this socket, once, when its thread ends."""
        if self.socket is not None:
            self._shutdown_socket()
            self.socket.close()
            self.socket = None
        if self._waker >= 0:
            waker, self._waker = self._waker, -1
            os.close(waker)
