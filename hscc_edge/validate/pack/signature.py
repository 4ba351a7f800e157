"""Who vouches for a bundle or a pack, when, and what for: Ed25519 (RFC 8032) over the digest of its manifest.

A signature is a small file in `signatures/`, outside the manifest, since it signs that; several people may sign.
Whatever changes a file changes the manifest, so that an old signature no longer fits.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hscc_edge import durable
from hscc_edge.errors import BundleError, InputError, extra

with extra("device"):
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_pem_private_key,
        load_pem_public_key,
    )

FOLDER = "signatures"
MANIFEST = "manifest.json"
PURPOSE = "hscc-edge signature 1"
NEW_KEY = "openssl genpkey -algorithm ed25519 -out key.pem"


@dataclass(frozen=True, slots=True)
class Signature:
    """One person's signature; every field but the last is signed.

    Attributes:
        manifest: sha256 of the manifest that was signed.
        signer: the name that the signer gave; the key tells whether it is so.
        meaning: what the signature stands for, such as "made", "reviewed" or "approved".
        signed: ISO 8601, UTC, by the signer's clock.
        key: the public key, 32 bytes in hexadecimal.
        signature: 64 bytes in hexadecimal.
    """

    manifest: str
    signer: str
    meaning: str
    signed: str
    key: str
    signature: str = ""

    @property
    def key_id(self) -> str:
        """Sixteen hexadecimal characters that name the key."""
        return key_id(self.key)

    @property
    def message(self) -> bytes:
        """The bytes that are signed."""
        facts = {name: value for name, value in asdict(self).items() if name != "signature"}
        return json.dumps({"purpose": PURPOSE, **facts}, sort_keys=True).encode()


def key_id(key: str) -> str:
    """The name of a public key, 32 bytes in hexadecimal."""
    return hashlib.sha256(bytes.fromhex(key)).hexdigest()[:16]


def read_private_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """A private key from a PEM file (PKCS 8).

    Raises:
        InputError: if it is missing, encrypted and no passphrase is given, or of another kind.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase)
    except OSError as error:
        raise InputError(
            f"the key {path} cannot be read ({error.strerror}): give a PEM file, for instance of {NEW_KEY}"
        ) from error
    except TypeError as error:
        wanted = "give its passphrase" if passphrase is None else "it is not encrypted, give no passphrase"
        raise InputError(f"the key {path} does not open: {wanted}") from error
    except ValueError as error:
        raise InputError(
            f"the key {path} is no PEM private key, or the passphrase is wrong: make one with {NEW_KEY}"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"the key {path} is a {type(key).__name__}: expected Ed25519, such as {NEW_KEY} makes")
    return key


def encrypted(path: Path) -> bool:
    """Whether a PEM file says that its key is encrypted."""
    return path.is_file() and b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()


def read_public_key(path: Path) -> str:
    """A public key from a PEM file, as hexadecimal.

    Raises:
        InputError: if it is no Ed25519 public key.
    """
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no PEM public key: write one with openssl pkey -in key.pem -pubout") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path} is a {type(key).__name__}: expected an Ed25519 public key")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def trusted_keys(folder: Path, *, root_owned: bool = False) -> dict[str, str]:
    """Public key -> name (the file's, without .pem) of every key in a folder.

    Args:
        root_owned: what a daemon asks for: folder and files belong to root.

    Raises:
        InputError: if there is none, or somebody else than the owner may change one.
    """
    files = sorted(folder.glob("*.pem")) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} holds no public key: put the signers' keys there, a PEM file each")
    for path in (folder, *files):
        found = path.stat()
        if stat.S_IMODE(found.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
            raise InputError(f"{path} can be changed by others than its owner: chmod go-w it")
        if root_owned and found.st_uid != 0:
            raise InputError(f"{path} does not belong to root: chown root it, for its owner decides what is trusted")
    return {read_public_key(path): path.stem for path in files}


def manifest_digest(root: Path) -> str:
    """sha256 of a directory's manifest: what identifies a bundle or a pack.

    Raises:
        InputError: if there is none.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise InputError(f"{root} has no {MANIFEST}: give a bundle or an evidence pack")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sign(root: Path, key: Ed25519PrivateKey, signer: str, meaning: str, signed: str) -> Path:
    """Sign a bundle or a pack whose files were verified; returns the new file.

    Raises:
        InputError: if this key has signed it already, or signer or meaning is empty.
    """
    if not signer.strip() or not meaning.strip():
        raise InputError("signer and meaning must not be empty: say who signs, and what the signature stands for")
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    draft = Signature(manifest_digest(root), signer.strip(), meaning.strip(), signed, public)
    made = Signature(**{**asdict(draft), "signature": key.sign(draft.message).hex()})
    path = root / FOLDER / f"{made.key_id}.json"
    if path.exists():
        raise InputError(f"{root} has a signature by the key {made.key_id} already: remove {path} to sign anew")
    durable.write_bytes(path, _dump(made))
    return path


def read_signature(content: bytes) -> Signature:
    """A signature from its file.

    Raises:
        BundleError: if it is malformed, or not written the one way in which it can be written.
    """
    try:
        raw: Any = json.loads(content)
        found = Signature(**raw)
        if not all(isinstance(value, str) for value in raw.values()) or _dump(found) != content:
            raise ValueError("not in its one form")
        if any(bytes.fromhex(text).hex() != text for text in (found.manifest, found.key, found.signature)):
            raise ValueError("not in small letters")
    except (ValueError, TypeError) as error:
        raise BundleError("is no signature in its one form: remove it, and have it signed again") from error
    return found


def check_signature(found: Signature, manifest: str) -> None:
    """Check that a signature is of this manifest and by the key that it names.

    Raises:
        BundleError: if it is not.
    """
    if found.manifest != manifest:
        raise BundleError("signs another manifest than the one that stands here: have it signed again")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(found.key)).verify(
            bytes.fromhex(found.signature), found.message
        )
    except (InvalidSignature, ValueError) as error:
        raise BundleError("does not fit its own words: it was altered; have it signed again") from error


def signature_files(root: Path) -> list[Path]:
    """The files of the signatures, by name."""
    return sorted((root / FOLDER).glob("*.json")) if (root / FOLDER).is_dir() else []


def require_trusted(root: Path, trusted: Mapping[str, str]) -> Signature:
    """The first good signature by a trusted key: what a device asks of a bundle before it loads it.

    Raises:
        BundleError: if there is none.
    """
    manifest = manifest_digest(root)
    for path in signature_files(root):
        try:
            found = read_signature(path.read_bytes())
            check_signature(found, manifest)
        except BundleError:
            continue
        if found.key in trusted:
            return found
    raise BundleError(
        f"{root} is not signed by a trusted key: have it signed (hscc-edge sign), or trust its signer's key"
    )


def require_newer(name: str, version: int, manifest: str, last: tuple[int, str] | None) -> None:
    """Refuse a silent downgrade of a model that was installed before.

    Args:
        last: version and manifest's digest of what was installed last under this name; None if nothing was.

    Raises:
        BundleError: if the version is lower, or the same while the content is another.
    """
    if last is None or (version, manifest) == last:
        return
    if version <= last[0]:
        raise BundleError(
            f"the bundle '{name}' has version {version}, and version {last[0]} was installed: give it a higher "
            "version, or withdraw the installed one first"
        )


def _dump(found: Signature) -> bytes:
    return (json.dumps(asdict(found), indent=2) + "\n").encode()
