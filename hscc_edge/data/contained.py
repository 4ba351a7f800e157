"""Reading where a crash, a hang or a memory explosion of a native decoder costs one file: in a process of its own.

The two speak JSON and raw samples over pipes; nothing that the child sends is unpickled or executed.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import resource
import selectors
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from pydicom.uid import UID

from hscc_edge.data.dicom import Headers, Image, read_headers, read_image
from hscc_edge.data.limits import LIMITS, MIB, Limits
from hscc_edge.data.lookup import Lut
from hscc_edge.errors import DicomError
from hscc_edge.lean import same_python

CHILD = "import sys; from hscc_edge.data.contained import serve; serve(sys.argv[1])"
READER = "hscc_edge.data.dicom:read_image"
START_S = 60.0
GRACE_S = 5
HEADER = struct.Struct("<I")
MOST_JSON = 8 * MIB


class _Gone(Exception):
    """The child did not answer; the reason is the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Containment:
    """What a file may cost: seconds, and MiB of address space over what the child has when it starts."""

    seconds: float = 30.0
    memory_mib: int = 4096


class ContainedReader:
    """Decodes in a child process that is started when needed, kept for the next file, and killed when it fails.

    A context manager; one thread at a time. Starting a child costs about a second, an image one copy through a pipe.
    """

    def __init__(
        self, containment: Containment | None = None, *, limits: Limits = LIMITS, reader: str = READER
    ) -> None:
        self._containment = containment or Containment()
        self._limits, self._reader = limits, reader
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ContainedReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe is not None:
                    pipe.close()
            self._child = None

    def read(self, path: Path, frame: int | None = None) -> Image:
        """`image` where the pixels are compressed; others, which no native decoder touches, are read here.

        Raises:
            DicomError: as `image` does.
        """
        compressed = UID(read_headers(path).transfer_syntax_uid).is_encapsulated
        return self.image(path, frame) if compressed else read_image(path, frame, limits=self._limits)

    def image(self, path: Path, frame: int | None = None) -> Image:
        """What `dicom.read_image` returns.

        Raises:
            DicomError: as `read_image` does; also if decoding crashed, took too long or took too much memory.
        """
        try:
            child = self._child or self._start()
            _send(child, json.dumps({"path": str(path), "frame": frame}).encode())
            return self._answer(child, path)
        except _Gone as gone:
            self.close()
            raise DicomError(f"{path} cannot be decoded: its decoder {gone}; leave it out") from gone
        except BaseException as error:
            if not isinstance(error, DicomError):  # half an answer may be left in the pipe
                self.close()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        options = {**asdict(self._containment), "limits": asdict(self._limits), "reader": self._reader}
        command, environment = same_python("-c", CHILD, json.dumps(options))
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        if _received(self._child, HEADER.size, time.monotonic() + START_S) != HEADER.pack(0):
            raise _Gone("did not start")
        if self._child.stdout is not None:
            with suppress(OSError):  # a user's pipes may be limited: then an image takes more turns
                fcntl.fcntl(self._child.stdout.fileno(), fcntl.F_SETPIPE_SZ, MIB)
        return self._child

    def _answer(self, child: subprocess.Popen[bytes], path: Path) -> Image:
        until = time.monotonic() + self._containment.seconds
        (size,) = HEADER.unpack(_received(child, HEADER.size, until))
        if size > MOST_JSON:
            raise _Gone("gave a malformed answer")
        try:
            told = json.loads(_received(child, size, until))
            if "memory" in told:
                raise DicomError(
                    f"{path} cannot be decoded: its decoder took more memory than "
                    f"{self._containment.memory_mib} MiB; leave it out, or allow more"
                )
            if "error" in told:
                raise DicomError(str(told["error"]))
            shape = tuple(int(part) for part in told["shape"])
            headers = _headers(told["headers"])
            decoder, padded = str(told["decoder"]), bool(told["padding"])
        except (ValueError, TypeError, LookupError) as error:
            raise _Gone("gave a malformed answer") from error
        samples = int(np.prod(shape, dtype=object))
        if len(shape) not in (2, 3) or not 0 < samples <= self._limits.samples:
            raise _Gone("gave a malformed answer")
        pixels = np.frombuffer(_received(child, 4 * samples, until), dtype=np.float32).reshape(shape)
        padding = None
        if padded:
            padding = np.frombuffer(_received(child, shape[0] * shape[1], until), dtype=np.bool_).reshape(shape[:2])
        return Image(pixels, headers, padding, decoder)


def serve(words: str) -> None:
    """The child's loop: requests from standard input, answers to standard output, until the former ends."""
    options = json.loads(words)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what native code prints is no answer
    module, _, name = options["reader"].partition(":")
    read: Callable[..., Image] = getattr(importlib.import_module(module), name)
    confine(options["memory_mib"])
    limits = Limits(**options["limits"])
    answers.write(HEADER.pack(0))
    answers.flush()
    while size := sys.stdin.buffer.read(HEADER.size):
        request = json.loads(sys.stdin.buffer.read(HEADER.unpack(size)[0]))
        signal.alarm(int(options["seconds"]) + GRACE_S)  # should the parent be gone when this hangs
        _write(answers, partial(read, Path(request["path"]), request["frame"], limits=limits))
        signal.alarm(0)


def confine(memory_mib: int) -> None:
    """Let this process's address space grow by so much and no more, and let it leave no core file."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory_mib * MIB
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _write(answers: BinaryIO, read: Callable[[], Image]) -> None:
    try:
        image = read()
        told = {
            "shape": image.pixels.shape,
            "headers": asdict(image.headers),
            "decoder": image.decoder,
            "padding": image.padding is not None,
        }
        arrays = [array for array in (image.pixels, image.padding) if array is not None]
    except DicomError as error:
        told, arrays = {"error": str(error)}, []
    except MemoryError:
        told, arrays = {"memory": True}, []
    content = json.dumps(told).encode()
    answers.write(HEADER.pack(len(content)) + content)
    for array in arrays:
        answers.write(np.ascontiguousarray(array).data.cast("B"))
    answers.flush()


def _send(child: subprocess.Popen[bytes], content: bytes) -> None:
    if child.stdin is None:
        raise _Gone("did not start")
    try:
        child.stdin.write(HEADER.pack(len(content)) + content)
        child.stdin.flush()
    except OSError as error:
        raise _Gone(_end(child)) from error


def _received(child: subprocess.Popen[bytes], size: int, until: float) -> bytearray:
    """Exactly `size` bytes of the child's answer."""
    if child.stdout is None:
        raise _Gone("did not start")
    found = bytearray(size)
    view, at = memoryview(found), 0
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while at < size:
            if not selector.select(max(until - time.monotonic(), 0.0)):
                raise _Gone("took too long and was ended")
            count = os.readv(child.stdout.fileno(), [view[at:]])
            if count == 0:
                raise _Gone(_end(child))
            at += count
    return found


def _end(child: subprocess.Popen[bytes]) -> str:
    code = child.wait()
    return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"


def _headers(told: dict[str, Any]) -> Headers:
    window, table = told["window"], told["voi_lut"]
    return Headers(
        **{
            **told,
            "window": (float(window[0]), float(window[1])) if window else None,
            "voi_lut": Lut(table["first"], table["bits"], tuple(table["values"])) if table else None,
        }
    )
