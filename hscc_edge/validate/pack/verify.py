"""Is a bundle or a pack what it was: every file against the manifest, every signature against the manifest.

Faults are collected, not raised, so that all altered files are named at once. Needs neither torch nor MONAI: it runs on
the device.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hscc_edge.digest import sha256_of
from hscc_edge.errors import BundleError, InputError
from hscc_edge.validate.pack.signature import (
    FOLDER,
    MANIFEST,
    Signature,
    check_signature,
    manifest_digest,
    read_signature,
    signature_files,
)


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that stands; `trusted` names its key's file in the folder of trusted keys, "" if it is not there."""

    file: str
    signature: Signature
    trusted: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found.

    Attributes:
        kind: "pack", "bundle" or "directory".
        manifest: sha256 of the manifest.
        files: how many it lists.
        faults: a sentence for every file that is not what it should be; empty if all stands.
    """

    root: Path
    kind: str
    manifest: str
    files: int
    faults: tuple[str, ...]
    signatures: tuple[Signed, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        signatures = [
            {"file": item.file, "signer": item.signature.signer, "meaning": item.signature.meaning,
             "signed": item.signature.signed, "key": item.signature.key_id, "trusted": item.trusted or None}
            for item in self.signatures
        ]  # fmt: skip
        return {
            "directory": str(self.root), "kind": self.kind, "manifest": self.manifest, "files": self.files,
            "faults": list(self.faults), "signatures": signatures, "verified": not self.faults,
        }  # fmt: skip


def verify(root: Path, trusted: Mapping[str, str] | None = None) -> Verification:
    """Check a bundle or a pack; cost grows with its bytes.

    Args:
        trusted: public key -> name; if given, a signature by one of them must be there.

    Raises:
        InputError: if `root` holds no manifest.
    """
    digest = manifest_digest(root)
    content = (root / MANIFEST).read_bytes()
    faults, files = list(_manifest_faults(content)), _files(content)
    faults += [fault for name, wanted in files.items() for fault in _file_faults(root, name, wanted)]
    faults += [f"{name}: no part of it, since the manifest does not list it" for name in _unlisted(root, files)]
    signed, wrong = _signatures(root, digest, trusted or {})
    faults += wrong
    if trusted is not None and not any(item.trusted for item in signed):
        faults.append(f"{FOLDER}: no signature by a trusted key")
    return Verification(root, _kind(root), digest, len(files), tuple(faults), tuple(signed))


def check_bundle(pack: Path, bundle: Path) -> None:
    """Check that a pack is about this bundle.

    Raises:
        InputError: if `pack` is no pack.
        BundleError: if it is about another one.
    """
    path = pack / "bundle" / MANIFEST
    if not path.is_file():
        raise InputError(f"{pack} is no evidence pack: it lacks bundle/{MANIFEST}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest_digest(bundle):
        raise BundleError(f"the pack {pack} is about another bundle than {bundle}: make its own (hscc-edge evidence)")


def canonical(files: Mapping[str, str]) -> bytes:
    """The one way to write a manifest, as bundles do; another layout of the same facts is an altered file."""
    return (json.dumps({"files": dict(sorted(files.items()))}, indent=2) + "\n").encode()


def _files(content: bytes) -> dict[str, str]:
    try:
        raw = json.loads(content)["files"]
        return {str(name): str(digest) for name, digest in raw.items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


def _manifest_faults(content: bytes) -> Iterator[str]:
    if not (files := _files(content)):
        yield f"{MANIFEST}: lists no files, or is no JSON"
    elif canonical(files) != content:
        yield f"{MANIFEST}: not written as it was made"


def _file_faults(root: Path, name: str, wanted: str) -> Iterator[str]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        yield f"{MANIFEST}: names {name}, which lies outside"
    elif (root / name).is_symlink() or not (root / name).is_file():
        yield f"{name}: missing, though {MANIFEST} lists it"
    elif (found := _sha256(root / name)) != wanted:
        yield f"{name}: sha256 {found[:12]}..., {MANIFEST} says {wanted[:12]}...: one of the two was altered"


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return sha256_of(file)
    except OSError as error:
        return f"unknown ({error.strerror})"


def _unlisted(root: Path, files: Mapping[str, str]) -> list[str]:
    known = {*files, MANIFEST, *(str(path.relative_to(root)) for path in signature_files(root))}
    return sorted(name for name in _tree(root) if name not in known)


def _tree(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*names, *links):
            yield (Path(folder) / name).relative_to(root).as_posix()


def _signatures(root: Path, digest: str, trusted: Mapping[str, str]) -> tuple[list[Signed], list[str]]:
    signed, faults = [], []
    for path in signature_files(root):
        name = f"{FOLDER}/{path.name}"
        try:
            found = read_signature(path.read_bytes())
            check_signature(found, digest)
            if path.stem != found.key_id:
                raise BundleError(f"is by the key {found.key_id}, and named after another")
        except BundleError as error:
            faults.append(f"{name}: {error}")
        else:
            signed.append(Signed(name, found, trusted.get(found.key, "")))
    return signed, faults


def _kind(root: Path) -> str:
    if (root / "pack.json").is_file():
        return "pack"
    return "bundle" if (root / "configs" / "hscc.json").is_file() else "directory"


def require(found: Verification) -> None:
    """Refuse a directory with faults, as a user's mistake.

    Raises:
        InputError: if there are faults.
    """
    if found.faults:
        more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
        raise InputError(f"{found.root} does not verify: {found.faults[0]}{more}; see hscc-edge verify {found.root}")
