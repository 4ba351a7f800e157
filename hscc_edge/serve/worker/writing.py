"""Reports, written in processes of their own while the next studies are read and inferred.

A process opens the headers of one image of the study, has the report made, and answers with every byte that is to be
sent. What crashes it, or hangs, costs that study one retry; nobody else's report is lost with it.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import UID

from hscc_edge.bundle import Bundle, read_bundle
from hscc_edge.errors import EngineError
from hscc_edge.model.decision import Decision
from hscc_edge.serve.outbox import NewDelivery
from hscc_edge.serve.results.report import Order, write_report
from hscc_edge.serve.results.sr import Reference
from hscc_edge.serve.station import Station
from hscc_edge.serve.studies import NewReport
from hscc_edge.serve.worker.child import Child
from hscc_edge.serve.worker.messages import ask, read, receive, write

MOST_WRITERS, PROCESSORS_EACH = 8, 2
START_S = 60.0


class WriterFailed(EngineError):
    """A process that writes died, hung or met what it did not expect; the text is the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Writing:
    """A report that is to be written, and what of.

    Attributes:
        head: the kept file whose headers it carries.
        cases: the decisions that it tells, each with its images.
    """

    order: Order
    bundle: Bundle
    head: str
    cases: Sequence[tuple[Decision, Sequence[Reference]]] = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but the report that it takes the place of."""
        order = {"model": self.order.model, "uid": str(self.order.uid), "predecessor": self.order.predecessor}
        cases = [[asdict(decision), images] for decision, images in self.cases]
        return {
            **order, "bundle": str(self.bundle.root), "digest": self.order.digest, "head": self.head, "cases": cases,
        }  # fmt: skip


@dataclass(slots=True)
class _Job:
    study: str = field(repr=False)
    writing: Writing
    child: Child | None = None
    starting: bool = False
    report: NewReport | None = None
    fault: WriterFailed | None = None

    @property
    def done(self) -> bool:
        return self.report is not None or self.fault is not None


class Writer:
    """Writes the reports of studies that were begun, several at once; memory grows with the reports on their way."""

    def __init__(self, station: Station) -> None:
        """Nothing is started yet."""
        self._station, self._patience_s = station, station.config.work.timeout_s
        count = max(1, min(MOST_WRITERS, len(os.sched_getaffinity(0)) // PROCESSORS_EACH))
        self._idle = [Child("the writer", self._live, WriterFailed, station.beat) for _ in range(count)]
        self._jobs: deque[_Job] = deque()

    def begin(self, study: str, writings: Sequence[Writing]) -> None:
        """Have a study's reports written."""
        self._jobs.extend(_Job(study, writing) for writing in writings)
        self._feed()

    def ready(self, study: str) -> bool:
        """Whether `finish` need not wait."""
        for job in list(self._jobs):
            if job.child is not None and job.child.answered():
                self._take(job, job.child)
        return all(job.done for job in self._jobs if job.study == study)

    def finish(self, study: str) -> list[NewReport]:
        """A study's reports, in the order in which they were begun; they are waited for.

        Raises:
            WriterFailed: if one could not be written.
            OSError: that the writing met; `close` it then.
        """
        while waiting := [job for job in self._jobs if job.study == study and not job.done]:
            self._take(*next((job, job.child) for job in (*waiting, *self._jobs) if job.child is not None))
        found = [job for job in self._jobs if job.study == study]
        self._jobs = deque(job for job in self._jobs if job.study != study)
        if fault := next((job.fault for job in found if job.fault is not None), None):
            raise fault
        return [job.report for job in found if job.report is not None]

    def close(self) -> None:
        """End the processes, and forget what was begun."""
        for job in self._jobs:
            if job.child is not None:
                self._idle.append(job.child)
        self._jobs.clear()
        for child in self._idle:
            child.close()

    def _feed(self) -> None:
        """Give every process that waits the oldest report that nobody writes."""
        for job in [job for job in self._jobs if job.child is None and not job.done]:
            if not self._idle:
                return
            child = self._idle.pop()
            try:
                job.starting = child.start()
                ask(child, job.writing.to_json(), job.writing.order.old or b"")
                job.child = child
            except WriterFailed as error:
                job.fault = error
                self._idle.append(child)

    def _take(self, job: _Job, child: Child) -> None:
        """Wait for what a process says of its report."""
        try:
            if job.starting:
                receive(child, START_S)
            job.report = self._answer(job.writing.order, child)
        except WriterFailed as error:
            job.fault = error
        job.child = None
        self._idle.append(child)
        self._feed()

    def _answer(self, order: Order, child: Child) -> NewReport:
        told, content = receive(child, self._patience_s)
        if "errno" in told:
            raise OSError(told["errno"], os.strerror(told["errno"]))
        if "fault" in told:
            raise WriterFailed(str(told["fault"]))
        try:
            return _report(order, told, content)
        except (ValueError, TypeError, LookupError):
            child.malformed()

    def _live(self, asks: int, answers: int) -> None:
        """The process's own loop, until the parent closes its end; it says first that it can write."""
        load()
        write(answers, {})
        while asked := read(asks):
            try:
                report = self._written(*asked)
            except OSError as error:
                write(answers, {"errno": error.errno or 0})
            except Exception as error:  # whatever the report's library throws at hostile headers
                write(answers, {"fault": type(error).__name__})
            else:
                sent = [(item.destination, item.form, item.sop, _size(item.content)) for item in report.deliveries]
                told = {"result": report.result, "content": len(report.content), "deliveries": sent}
                write(answers, told, report.content, *(item.content for item in report.deliveries if item.content))

    def _written(self, told: Mapping[str, Any], old: bytes) -> NewReport:
        cases = [(_decision(decision), [tuple(item) for item in images]) for decision, images in told["cases"]]
        order = Order(
            told["model"], told["digest"], UID(told["uid"]), told["predecessor"], old or None,
            tuple(range(len(cases))),
        )  # fmt: skip
        head = pydicom.dcmread(self._station.spool().path(told["head"]), stop_before_pixels=True)
        return write_report(self._station.config, _bundle(told["bundle"], told["digest"]), order, head, cases)


def load() -> None:
    """Import what makes reports, which takes longer than a report."""
    importlib.import_module("hscc_edge.serve.results.measurement_report")


@lru_cache(maxsize=16)
def _bundle(root: str, digest: str) -> Bundle:
    """A bundle that the worker has verified; its folder is named by its digest."""
    bundle = read_bundle(Path(root), verify=False)
    if bundle.digest != digest:
        raise EngineError("the bundle was altered")
    return bundle


def _decision(told: dict[str, Any]) -> Decision:
    return Decision(**told | {"probabilities": tuple(told["probabilities"])})


def _size(content: bytes | None) -> int | None:
    return None if content is None else len(content)


def _report(order: Order, told: Mapping[str, Any], content: bytes | bytearray) -> NewReport:
    """What a process answered, if it makes sense."""
    left = BytesIO(content)
    report = left.read(int(told["content"]))
    sent = [
        NewDelivery(str(name), str(form), sop, None if size is None else left.read(int(size)))
        for name, form, sop, size in told["deliveries"]
    ]
    if not report or sum(len(item.content or b"") for item in sent) + len(report) != len(content):
        raise ValueError
    return NewReport(order.model, order.digest, str(order.uid), report, told["result"], sent, order.predecessor)
