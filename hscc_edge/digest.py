"""The SHA-256 of a file's content, read in blocks."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

BLOCK = 1 << 20


def sha256_of(file: BinaryIO) -> str:
    """Hexadecimal digest of what is left to read; memory holds one block."""
    digest = hashlib.sha256()
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()
