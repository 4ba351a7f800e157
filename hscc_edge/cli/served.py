"""The demo's last step: the daemon on loopback between a sender and an archive of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hscc_edge import durable
from hscc_edge.cli.output import Output
from hscc_edge.errors import StorageError, extra

if TYPE_CHECKING:
    from hscc_edge.data.cohort import Cohort

CONFIG = """\
state = "state"
reserve_mib = 64

[[model]]
bundle = "{bundle}"

[work]
threads = 2

[study]
quiet_s = 2.0

[[route]]
when = {{ Modality = ["MR"] }}

[dicom]
port = 0

[[destination]]
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = {port}
"""
PATIENCE_S = 180.0


def serve_cohort(
    output: Output, out: Path, cohort: Path, bundle: Path, cases: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Send the test studies to a real daemon, wait for one report each, compare with validate's decisions.

    Raises:
        StorageError: if the daemon does not come up.
    """
    from hscc_edge.data.cohort import read_cohort
    from hscc_edge.serve.doors.receiver import receive

    test = read_cohort(cohort).select("test")
    config, archive = out / "serve.toml", out / "archive"
    with receive(archive) as port:
        durable.write_text(config, CONFIG.format(bundle=os.path.relpath(bundle, out), port=port))
        output.say(f"$ hscc-edge serve {config}")
        with (out / "serve.log").open("w") as log:
            daemon = subprocess.Popen([sys.executable, "-m", "hscc_edge", "serve", str(config)], stderr=log, stdout=log)
            try:
                acknowledged = _send(test, _port(out / "state" / "daemon.json", daemon))
                output.say(f"  sent {len(test.cases())} studies, {acknowledged} acknowledged")
                reports = _wait(archive, len(test.cases()), daemon)
            finally:
                daemon.send_signal(signal.SIGTERM)
                daemon.wait(60)
    decided = [_read_report(path) for path in reports]
    _show_report(output, reports[0])
    return {
        "sent": len(test.cases()),
        "acknowledged": acknowledged,
        "reports": len(reports),
        "agreement": _agreement(test, decided, cases),
    }


def _port(status: Path, daemon: subprocess.Popen[bytes]) -> int:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and daemon.poll() is None:
        if status.exists():
            found = json.loads(status.read_text())
            if found["pid"] == daemon.pid:
                return int(found["port"])
        time.sleep(0.1)
    raise StorageError("the daemon did not come up: see serve.log beside its configuration")


def _send(test: Cohort, port: int) -> int:
    """Studies of which every instance was acknowledged with 0x0000."""
    import pydicom

    from hscc_edge.serve.config import Destination
    from hscc_edge.serve.results.storage_user import store

    daemon = Destination(ae_title="HSCC_EDGE", port=port)
    acknowledged = 0
    for items in test.cases("study").values():
        statuses = store([pydicom.dcmread(test.path(item)) for item in items], daemon, "MODALITY")
        acknowledged += all(status == 0x0000 for status in statuses)
    return acknowledged


def _wait(archive: Path, wanted: int, daemon: subprocess.Popen[bytes]) -> list[Path]:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and daemon.poll() is None:
        reports = sorted(archive.glob("*.dcm"))
        if len(reports) >= wanted:
            return reports
        time.sleep(0.2)
    raise StorageError(f"{len(list(archive.glob('*.dcm')))} of {wanted} reports came: see serve.log")


def _read_report(path: Path) -> tuple[str, str]:
    """(Study Instance UID, coded finding's value)."""
    with extra("device"):
        from highdicom.sr import srread

    report: Any = srread(path)
    group = report.content.get_image_measurement_groups()[0]
    return str(report.StudyInstanceUID), str(group.finding_type.value)


def _agreement(test: Cohort, decided: Sequence[tuple[str, str]], cases: Sequence[dict[str, Any]]) -> float:
    """Share of studies whose report names the class that `validate` decided."""
    expected = {case["case"]: test.codes[case["candidate"]]["value"] for case in cases}
    hits = sum(expected.get(test.pseudonym(study)) == value for study, value in decided)
    return hits / max(len(expected), 1)


def _show_report(output: Output, path: Path) -> None:
    with extra("device"):
        from highdicom.sr import srread

    report: Any = srread(path)
    group = report.content.get_image_measurement_groups()[0]
    output.say(f"  one report: {report.SOPClassUID.name}, {report.PreliminaryFlag}, {report.VerificationFlag}")
    finding = group.finding_type
    output.say(f"    Finding: {finding.meaning} ({finding.value}, {finding.scheme_designator})")
    for measurement in group.get_measurements():
        output.say(f"    {measurement.name.meaning}: {measurement.value:.4f}")
