"""Words for systemd (sd_notify(3)): ready, reloading, stopping, and the watchdog's sign of life."""

from __future__ import annotations

import os
import socket
import time


def notify(text: str) -> bool:
    """Tell the service manager; False where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as door:
        try:
            door.connect("\0" + address[1:] if address.startswith("@") else address)
            door.sendall((text + _since(text)).encode())
        except OSError:
            return False
    return True


def _since(text: str) -> str:
    """When a reload began, which Type=notify-reload wants to know."""
    return f"\nMONOTONIC_USEC={time.monotonic_ns() // 1000}" if text == "RELOADING=1" else ""
