"""Identifiers are planted in every VR of studies that come by every door, then looked for wherever none may be.

    python benchmarks/sentinels.py --studies 200 --out results/hostile

Good, spoilt, refused and doubled instances go through the daemon to the end, with an archive that takes reports and
destinations that do not. Journal, spool and the reports themselves hold identifiers and are not searched; everything
else below the state directory is, with all names there, and the log, every page that links lead to, and metrics.
Ends in OUT/sentinels.json; exits 1 if one is found.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import mutations
import pydicom
from pydicom import uid
from pynetdicom import AE, AllStoragePresentationContexts, evt
from soak_models import add_arguments, given

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serve"))

import attacks_http
from box import Box, storescu, wait_for

from hscc_edge import durable
from hscc_edge.cli import app
from hscc_edge.data.cohort import Cohort
from hscc_edge.serve.config import Config
from hscc_edge.serve.config_file import read_config
from hscc_edge.serve.doors.receiver import receive
from hscc_edge.serve.web.accounts import OPERATOR, accounts_file, add_account

WORD, ROOT = "ZQ7SENTINEL", "1.2.826.0.1.3680043.8.498.7071"
DAY, TIME, NUMBER, AGE, SIGNED = "18471103", "134659.172", 1903070119, "943D", -1708090213
# One element of each VR that can carry text or a number of its own; CS, AE and SH are short.
PLANTED: dict[str, tuple[str, Any]] = {
    "PN": ("PatientName", f"{WORD}^Ada=\u30bc\u30c3\u30c8"), "LO": ("PatientID", f"{WORD}-ID"),
    "SH": ("AccessionNumber", WORD),
    "DA": ("PatientBirthDate", DAY), "TM": ("PatientBirthTime", TIME), "AS": ("PatientAge", AGE),
    "DT": ("AcquisitionDateTime", DAY + TIME), "ST": ("InstitutionAddress", f"{WORD} street"),
    "LT": ("PatientComments", f"{WORD} comment"), "UT": ("TextValue", f"{WORD} text"),
    "UC": ("LongCodeValue", f"{WORD} code"), "UR": ("RetrieveURL", f"http://{WORD}.example/{WORD}"),
    "CS": ("ScanOptions", WORD), "AE": ("RetrieveAETitle", WORD), "IS": ("AcquisitionNumber", NUMBER),
    "DS": ("PatientWeight", "70.7190313"), "UI": ("FrameOfReferenceUID", f"{ROOT}.1.9"),
}  # fmt: skip
BINARY: dict[str, Any] = {
    "OB": WORD.encode() + b" ", "OW": WORD.encode() + b" ", "UN": WORD.encode() + b" ", "UL": NUMBER, "SL": SIGNED,
    "FD": 7071.90313, "FL": 70719.5, "OF": WORD.encode() + b"ZZZZZ", "OD": WORD.encode() + b"ZZZZZ",
    "OL": WORD.encode() + b"ZZZZZ", "OV": WORD.encode() + b"ZZZZZ", "SV": -7071903137071903, "UV": 7071903137071903,
    "AT": 0x70719031, "US": 17071, "SS": -17071,
}  # fmt: skip
# What of these is looked for: words in any case, numbers where no digit stands beside them, so that a random name in
# hexadecimal is none.
PATTERN = re.compile(
    "|".join(
        (
            "zq7", re.escape(ROOT), f"(?<![0-9.]){DAY}", re.escape(TIME), rf"(?<!\d){NUMBER}(?!\d)", str(SIGNED),
            rf"(?<![0-9a-f]){AGE}(?![0-9a-f])",
            "70\\.719", "7071\\.90", "70719\\.5", "7071903137", "1884360753", "\u30bc\u30c3\u30c8",
        )
    ).encode(),
    re.IGNORECASE,
)  # fmt: skip
MORE = """
[web]
enabled = true
port = 0
stow = true
[[folder]]
path = "drop"
settle_s = 0.2
[[destination]]
name = "away"
ae_title = "NOBODY"
port = {away}
[[destination]]
name = "unwilling"
ae_title = "REFUSES"
port = {unwilling}
attempts = 2
first_retry_s = 0.1
last_retry_s = 0.1
"""
VERBS = (
    ("status",), ("studies",), ("queue",), ("quarantine",), ("redrive",), ("models", "list"), ("models",),
    ("audit", "verify"), ("state", "check"),
)  # fmt: skip
DAMAGES = ("good", "aside", "undecodable", "no series", "cut", "deflated", "doubled", "mutant")
ACCOUNT, PASSWORD = "operator", "a password of several words"


@dataclass(frozen=True, slots=True)
class Sent:
    """Files of one study, by the door that they go through."""

    files: tuple[Path, ...]
    door: str
    damage: str


def plant(dataset: pydicom.Dataset, study: int, number: int) -> None:
    """Put a sentinel into an element of each VR, at the top, in a sequence and in a private block."""
    dataset.SpecificCharacterSet = "ISO_IR 192"
    nested = pydicom.Dataset()
    for place in (dataset, nested):
        for keyword, value in PLANTED.values():
            setattr(place, keyword, value)
        block = place.private_block(0x0099, f"{WORD} MAKER", create=True)
        for offset, (vr, value) in enumerate(BINARY.items()):
            block.add_new(offset, vr, value)
    dataset.RequestAttributesSequence = [nested]
    dataset.StudyID, dataset.InstitutionName = WORD, f"{WORD} hospital"
    dataset.ReferringPhysicianName = dataset.OperatorsName = f"{WORD}^Physician"
    dataset.StudyDescription = dataset.SeriesDescription = f"{WORD} study"
    dataset.StudyInstanceUID = f"{ROOT}.{study}"
    dataset.SeriesInstanceUID = f"{ROOT}.{study}.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.{study}.1.{number}"


def make(cohort: Cohort, root: Path, studies: int, doors: Sequence[str], seed: int) -> Iterator[Sent]:
    """Planted studies: each damage by each door in turn; the names of files are sentinels too."""
    cases = list(cohort.cases("study").values())
    for study in range(studies):
        damage = DAMAGES[study // len(doors) % len(DAMAGES)]
        chance = random.Random(f"{seed}/{study}")
        folder = root / f"{WORD}-{study}"
        folder.mkdir(parents=True)
        files: list[Path] = []
        for number, item in enumerate(cases[study % len(cases)]):
            dataset = pydicom.dcmread(cohort.path(item))
            plant(dataset, study, number)
            for content in _damaged(dataset, damage, chance):
                files.append(folder / f"{WORD}-{study}-{number}-{len(files)}.dcm")
                files[-1].write_bytes(content)
        yield Sent(tuple(files), doors[study % len(doors)], damage)


def _damaged(dataset: pydicom.Dataset, damage: str, chance: random.Random) -> Iterator[bytes]:
    match damage:
        case "aside":
            dataset.Modality = "CT"
        case "undecodable":
            dataset.PixelData = dataset.PixelData[:10]
        case "no series":
            del dataset.SeriesInstanceUID
        case "deflated":
            dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    buffer = BytesIO()
    dataset.save_as(buffer)
    content = buffer.getvalue()
    if damage == "cut":
        content = content[: len(content) // 2]
    if damage == "mutant":
        content = mutations.MUTATORS[chance.choice(list(mutations.MUTATORS))](content, chance)
    yield content
    if damage == "doubled":
        dataset.PatientComments = f"{WORD} another"
        buffer = BytesIO()
        dataset.save_as(buffer)
        yield buffer.getvalue()


def doors_of(config: Config) -> tuple[str, ...]:
    """The doors that a configuration opens."""
    return (
        "dimse",
        *(("stow",) if config.web.enabled and config.web.stow else ()),
        *(("folder",) if config.folder else ()),
    )


def send(sent: Sent, dicom: int, web: int, drop: Path) -> None:
    """Through the door that it is for; by STOW-RS with the study's UID in the address every other time."""
    if sent.door == "dimse":
        storescu(dicom, list(sent.files), "-nh")
    elif sent.door == "folder":
        for path in sent.files:
            shutil.copy(path, drop / f".{path.name}")
            (drop / f".{path.name}").rename(drop / path.name)
    else:
        parts = b"".join(b"\r\n--line\r\n\r\n" + path.read_bytes() for path in sent.files)
        study = "/" + ROOT + "." + sent.files[0].name.split("-")[1] if len(sent.files) % 2 else ""
        httpx.post(
            f"http://127.0.0.1:{web}/dicom-web/studies{study}", content=parts + b"\r\n--line--\r\n",
            headers={"Content-Type": attacks_http.KIND}, trust_env=False, timeout=60,
        )  # fmt: skip


def crawl(web: int) -> Iterator[tuple[str, bytes]]:
    """(address, content) of every page that links lead to from the first, of a search, and of what programs read."""
    with httpx.Client(base_url=f"http://127.0.0.1:{web}", trust_env=False, timeout=60) as client:
        csrf = attacks_http._token(client)
        signed_in = client.post("/sign-in", data={"name": ACCOUNT, "password": PASSWORD, "csrf": csrf})
        yield "sign-in", signed_in.content
        if signed_in.status_code != 303:
            raise RuntimeError(f"signing in ended with {signed_in.status_code}")
        searched = [f"{ROOT}.0", WORD, f"{WORD}^Ada", "nonsense"]
        waiting, seen = ["/", "/metrics", "/healthz", "/readyz", "/dicom-web/nothing"], set[str]()
        for text in searched:
            page = client.get("/studies")
            found = re.search(r'name="csrf" value="([^"]+)"', page.text)
            form = {"csrf": found[1] if found else "", "q": text}
            answer = client.post("/studies/find", data=form)
            yield f"/studies/find -> {answer.headers.get('location', '')}", answer.content.replace(text.encode(), b"")
            if "location" in answer.headers:
                waiting.append(answer.headers["location"])
        while waiting and len(seen) < 400:
            path = waiting.pop(0)
            if path in seen:
                continue
            seen.add(path)
            answer = client.get(path)
            yield path + " " + answer.headers.get("location", ""), answer.content
            if "text/html" in answer.headers.get("content-type", ""):
                links = re.findall(r'(?:href|src)="([^"]+)"', answer.text)
                targets = (urlsplit(urljoin(path, link.replace("&amp;", "&"))) for link in links)
                waiting += [f"{item.path}?{item.query}".rstrip("?") for item in targets if not item.netloc]


def told(config: Path) -> Iterator[tuple[str, bytes]]:
    """(verb, output) of every verb that tells what the daemon does, as a table and as JSON."""
    from typer.main import get_command
    from typer.testing import CliRunner

    for words in VERBS:
        command: Any = get_command(app)
        for word in words:
            command = getattr(command, "commands", {}).get(word)
        if command is None or getattr(command, "commands", None):
            continue
        for flags in ([], ["--json"]):
            said = CliRunner().invoke(app, [*words, str(config), *flags])
            yield f"hscc-edge {' '.join(words)}", said.output.encode().replace(str(config).encode(), b"")


@contextmanager
def collecting() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """(address, what it was sent) of a collector of traces, OTLP over HTTP."""
    taken: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((f"trace {self.path}", self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def below(state: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of what lies in the state directory, but what journal and spool hold."""
    for path in state.rglob("*"):
        name = str(path.relative_to(state))
        held = name.startswith(("journal.", "spool/", "models/"))
        with suppress(FileNotFoundError):
            yield name, path.read_bytes() if path.is_file() and not held else b""


def leaks(places: Iterator[tuple[str, bytes]]) -> Iterator[str]:
    """Where a sentinel stands, in a name or in what it names; the sentinel itself is told, since it is nobody's."""
    for name, content in places:
        for part in (name.encode("utf-8", "surrogateescape"), content):
            for found in PATTERN.finditer(part):
                around = part[max(0, found.start() - 60) : found.end() + 20]
                yield f"{name}: {around!r}"


def run(root: Path, cohort: Cohort, bundle: Path, studies: int, seed: int) -> dict[str, Any]:
    """Send planted studies through the daemon to the end; what was sent, searched and found."""
    (root / "drop").mkdir()
    with receive(root / "closed") as away:
        pass
    with receive(root / "archive") as archive, _refusing() as unwilling, collecting() as (traces, traced):
        more = MORE.format(away=away, unwilling=unwilling)
        box = Box(root, bundle, archive, reserve_mib=f'1\ntraces = "{traces}"', more=more)
        doors = doors_of(read_config(box.config))
        sent = list(make(cohort, root / "files", studies, doors, seed))
        process, dicom = box.start()
        try:
            add_account(accounts_file(root / "state"), ACCOUNT, OPERATOR, PASSWORD)
            web = int(json.loads((root / "state" / "daemon.json").read_text())["ports"]["web"])
            for item in sent:
                send(item, dicom, web, root / "drop")
            settled = wait_for(lambda: _is_settled(root), 300) and wait_for(lambda: traced)
            pages = [*crawl(web), *told(box.config)]
        finally:
            process.terminate()
            process.wait(30)
        reports = len(list((root / "archive").glob("*.dcm")))
    spool = ((path.name, path.read_bytes()) for path in (root / "state" / "spool").iterdir())
    return {
        "studies": studies, "doors": list(doors), "settled": settled, "instances": box.states(), "reports": reports,
        "pages": len([name for name, _ in pages if name.startswith("/")]), "traces": len(traced),
        "verbs": sorted({name for name, _ in pages if name.startswith("hscc-edge")}),
        "log_lines": box.log.read_text().count("\n"), "in_spool": len(list(leaks(spool))),
        "found": list(leaks(iter([*pages, *traced, *below(root / "state"), ("log", box.log.read_bytes())]))),
    }  # fmt: skip


@contextmanager
def _refusing() -> Iterator[int]:
    """An archive that cannot keep what it gets."""
    entity = AE("REFUSES")
    entity.supported_contexts = AllStoragePresentationContexts
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda event: 0xC001)])
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def _is_settled(root: Path) -> bool:
    with sqlite3.connect(root / "state" / "journal.sqlite") as db:
        (rows,) = db.execute("SELECT COUNT(*) FROM instances WHERE state = 'received'").fetchone()
        (pending,) = db.execute(
            "SELECT COUNT(*) FROM deliveries WHERE state = 'pending' AND destination != 'away'"
        ).fetchone()
    return not rows and not pending and not any(path.is_file() for path in (root / "drop").iterdir())


def main() -> None:
    """Write sentinels.json and print it; exit 1 if one was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--out", type=Path, default=Path("results/hostile"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle, cohort = given(arguments, Path(scratch) / "small")
        found = run(Path(scratch), cohort, bundle, arguments.studies, arguments.seed)
    found = {"date": time.strftime("%Y-%m-%d"), "seed": arguments.seed, **found}
    durable.write_json(arguments.out / "sentinels.json", found)
    print(json.dumps(found, indent=2))
    sys.exit(1 if found["found"] or not found["settled"] else 0)


if __name__ == "__main__":
    main()
