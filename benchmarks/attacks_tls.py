"""Peers without the right certificate: on the ports of a daemon that asks for one, none of them gets through."""

from __future__ import annotations

import json
import socket
import ssl
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attacks_dicom import ATTACKER, LONGEST_S, Outcome
from attacks_http import stow, whole
from authority import Authority
from box import Box
from pdu_mutations import ASSOCIATE_AC, Association

from hscc_edge.serve.config import Tls

TABLE = 'certificate = "{0.certificate}"\nkey = "{0.key}"\nauthorities = "{0.authorities}"\n'


@dataclass(frozen=True, slots=True)
class Target:
    """Two ports and the certificates that peers show: name -> certificate, None for none."""

    dicom: int
    web: int
    authorities: Path
    shown: dict[str, Tls | None]
    recorded: Association


@contextmanager
def target(root: Path, bundle: Path, recorded: Association) -> Iterator[Target]:
    """A daemon with mutual TLS on both ports."""
    root.mkdir()
    own, other = Authority(root / "own"), Authority(root / "other", "stranger")
    tables = TABLE.format(own.sign("box"))
    web = f"[web]\nenabled = true\nport = 0\nstow = true\n[web.tls]\n{tables}"
    shown = {
        "right": own.sign("modality"),
        "none": None,
        "stranger's": other.sign("peer"),
        "expired": own.sign("old", 0),
    }
    box = Box(root, bundle, 1, processes=f"1\nidle_s = 2.0\n[dicom.tls]\n{tables}", more=web)
    process, port = box.start()
    try:
        time.sleep(1.0)  # by now the expired one is
        ports = json.loads((root / "state" / "daemon.json").read_text())["ports"]
        yield Target(port, ports["web"], own.certificate, shown, recorded)
    finally:
        process.terminate()
        process.wait(30)


def wrong_certificates(target: Target, count: int) -> Outcome:
    """Each certificate on each port, plain text, and a TLS that is too old: only the right one gets an answer."""
    endings: Counter[str] = Counter()
    wrong = 0
    association = target.recorded.pdus[0]
    request = whole(*stow(target.recorded.variant(9_200_000)))
    for _ in range(count):
        for name, certificate in target.shown.items():
            for door, port, said in (("DICOM", target.dicom, association), ("HTTP", target.web, request)):
                ending = _answer(port, _context(target, certificate), said)
                endings[f"{door}, certificate {name}: {ending}"] += 1
                wrong += (ending == "let in") != (name == "right")
        for door, port, said in (("DICOM", target.dicom, association), ("HTTP", target.web, request)):
            for name, context in (("plain", None), ("TLS 1.1", _context(target, target.shown["right"], old=True))):
                ending = _answer(port, context, said)
                endings[f"{door}, {name}: {ending}"] += 1
                wrong += ending == "let in"
    return Outcome(sum(endings.values()), endings, wrong)


def _context(target: Target, certificate: Tls | None, old: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(target.authorities))
    if old:
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is deprecated is the point
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = ssl.TLSVersion.TLSv1_1
    if certificate is not None:
        context.load_cert_chain(certificate.certificate, certificate.key)
    return context


def _answer(port: int, context: ssl.SSLContext | None, said: bytes) -> str:
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=LONGEST_S, source_address=(ATTACKER, 0)) as plain,
            plain if context is None else context.wrap_socket(plain, server_hostname="127.0.0.1") as client,
        ):
            client.sendall(said)
            heard = client.recv(4096)
    except TimeoutError:
        return "left open"
    except OSError:  # ssl.SSLError is one
        return "refused"
    if heard[:1] == bytes([ASSOCIATE_AC]) or heard.startswith(b"HTTP/1.1 200"):
        return "let in"
    return f"refused, {heard[9:12].decode()}" if heard.startswith(b"HTTP/1.1") else "refused"
