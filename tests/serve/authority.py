"""Certificates of openssl's for the tests: an authority, and what it or a stranger has signed."""

import subprocess
from pathlib import Path

from hscc_edge.serve.config import Tls


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Authority:
    """A certificate authority in a directory of its own."""

    def __init__(self, root: Path, name: str = "ca") -> None:
        self.root, self.name = root, name
        root.mkdir(parents=True, exist_ok=True)
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650",
            "-subj", f"/CN={name}", "-keyout", str(root / f"{name}.key"), "-out", str(root / f"{name}.pem"),
        )  # fmt: skip

    @property
    def certificate(self) -> Path:
        return self.root / f"{self.name}.pem"

    def sign(self, name: str, days: int = 90) -> Tls:
        """A certificate for 127.0.0.1 and localhost, its key, and this authority."""
        key, request, certificate = (self.root / f"{name}.{end}" for end in ("key", "csr", "pem"))
        more = self.root / f"{name}.ext"
        more.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", str(key), "-out", str(request),
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey",
            str(self.root / f"{self.name}.key"), "-CAcreateserial", "-days", str(days), "-extfile", str(more),
            "-out", str(certificate),
        )  # fmt: skip
        return Tls(certificate, key, self.certificate)
