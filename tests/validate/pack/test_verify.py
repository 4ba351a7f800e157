"""A flipped byte in any file of a bundle or pack is found and named; signatures say who, and for which manifest."""

import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from hscc_edge.bundle import add_files, read_bundle
from hscc_edge.errors import BundleError, InputError
from hscc_edge.validate.pack import signature
from hscc_edge.validate.pack.verify import check_bundle, require, verify

WHEN = "2026-11-25T08:00:00Z"
MASKS = (0x01, 0x20, 0x2A)  # 0x20 changes the case of a letter, 0x2A makes a line's end of a space


def pem(key, passphrase=None):
    how = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


@pytest.fixture(scope="session")
def key():
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def trust(tmp_path, key):
    folder = tmp_path / "trusted"
    folder.mkdir(mode=0o755)
    (folder / "physicist.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return folder


def files_of(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["bundle", "pack"])
def test_a_flipped_byte_in_any_file_is_named(kind, small, pack, key, copy_of):
    root = copy_of(small.root if kind == "bundle" else pack.root)
    signature.sign(root, key, "A. Physicist", "approved", WHEN)
    whole = verify(root)
    assert not whole.faults and whole.kind == kind and len(whole.signatures) == 1
    for path in files_of(root):
        content, name = path.read_bytes(), path.relative_to(root).as_posix()
        facts = name == "manifest.json" or name.startswith("signatures/")
        step = max(len(content) // (20 if facts else 2), 1)
        for place in (*range(0, len(content), step), len(content) - 1):
            for mask in MASKS if facts else MASKS[:1]:
                path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])
                found = verify(root)
                assert any(name in fault for fault in found.faults), (name, place, mask)
        path.write_bytes(content)
    assert not verify(root).faults


def test_missing_unlisted_linked_and_outside_files_are_named(small, copy_of):
    root = copy_of(small.root)
    (root / "models" / "model.onnx").rename(root / "models" / "other.onnx")
    (root / "LICENSE").unlink()
    (root / "LICENSE").symlink_to("/etc/hostname")
    (root / "link").symlink_to("/etc")
    faults = verify(root).faults
    for words in ("models/model.onnx: missing", "models/other.onnx: no part", "LICENSE: missing", "link: no part"):
        assert any(fault.startswith(words) for fault in faults), (words, faults)
    outside = {"files": {"../else": "0" * 64}}
    (root / "manifest.json").write_text(json.dumps(outside, indent=2) + "\n")
    assert any("lies outside" in fault for fault in verify(root).faults)
    with pytest.raises(InputError, match="does not verify"):
        require(verify(root))
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        verify(root / "models")


def test_who_signed_is_checked_against_trusted_keys(small, copy_of, key, trust):
    root = copy_of(small.root)
    keys = signature.trusted_keys(trust)
    assert verify(root, keys).faults == ("signatures: no signature by a trusted key",)
    with pytest.raises(BundleError, match="not signed by a trusted key"):
        signature.require_trusted(root, keys)
    signature.sign(root, Ed25519PrivateKey.generate(), "Somebody", "made", WHEN)
    assert verify(root, keys).faults
    signature.sign(root, key, "A. Physicist", "approved", WHEN)
    found = verify(root, keys)
    assert not found.faults
    assert {item.signature.signer: item.trusted for item in found.signatures} == {
        "Somebody": "",
        "A. Physicist": "physicist",
    }
    assert signature.require_trusted(root, keys).signer == "A. Physicist"
    with pytest.raises(InputError, match="already"):
        signature.sign(root, key, "A. Physicist", "approved", WHEN)
    with pytest.raises(InputError, match="must not be empty"):
        signature.sign(root, key, " ", "approved", WHEN)


def test_a_changed_bundle_loses_its_signature(small, copy_of, key):
    root = copy_of(small.root)
    signed = signature.sign(root, key, "A. Physicist", "approved", WHEN)
    kept = signed.read_bytes()
    add_files(read_bundle(root), {"reports/note.txt": b"seen"})
    assert not signed.exists() and not verify(root).signatures
    signed.parent.mkdir()
    signed.write_bytes(kept)
    assert any("signs another manifest" in fault for fault in verify(root).faults)


def test_the_same_key_gives_the_same_signature(small, copy_of, key):
    root = copy_of(small.root)
    first = signature.sign(root, key, "A. Physicist", "approved", WHEN).read_bytes()
    signature.signature_files(root)[0].unlink()
    assert signature.sign(root, key, "A. Physicist", "approved", WHEN).read_bytes() == first


def test_keys_that_will_not_do_are_refused(tmp_path, key, trust):
    files = {
        "rsa": generate_private_key(65537, 2048).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "text": b"no key", "locked": pem(key, b"secret"), "open": pem(key),
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    wrong = [("rsa", None, "expected Ed25519"), ("text", None, "no PEM private key"), ("absent", None, "cannot be"),
             ("locked", None, "give its passphrase"), ("locked", b"other", "passphrase is wrong"),
             ("open", b"secret", "give no passphrase")]  # fmt: skip
    for name, passphrase, words in wrong:
        with pytest.raises(InputError, match=words):
            signature.read_private_key(tmp_path / f"{name}.pem", passphrase)
    assert signature.encrypted(tmp_path / "locked.pem") and not signature.encrypted(tmp_path / "open.pem")
    signature.read_private_key(tmp_path / "locked.pem", b"secret")
    (trust / "other.pem").write_bytes(b"no key")
    with pytest.raises(InputError, match="no PEM public key"):
        signature.trusted_keys(trust)
    (trust / "other.pem").unlink()
    with pytest.raises(InputError, match="holds no public key"):
        signature.trusted_keys(tmp_path / "absent")
    os.chmod(trust, 0o777)
    with pytest.raises(InputError, match="can be changed by others"):
        signature.trusted_keys(trust)


def test_a_folder_of_another_user_is_not_trusted_by_a_daemon(trust):
    if os.geteuid() != 0:
        with pytest.raises(InputError, match="does not belong to root"):
            signature.trusted_keys(trust, root_owned=True)
        return
    assert signature.trusted_keys(trust, root_owned=True)
    os.chown(trust / "physicist.pem", 12345, 12345)
    with pytest.raises(InputError, match="does not belong to root"):
        signature.trusted_keys(trust, root_owned=True)


@pytest.mark.parametrize(
    ("version", "manifest", "last", "taken"),
    [(1, "a", None, True), (2, "b", (1, "a"), True), (1, "a", (1, "a"), True), (1, "b", (1, "a"), False),
     (1, "b", (2, "a"), False)],
)  # fmt: skip
def test_no_silent_downgrade(version, manifest, last, taken):
    if taken:
        signature.require_newer("tiny", version, manifest, last)
    else:
        with pytest.raises(BundleError, match="give it a higher version"):
            signature.require_newer("tiny", version, manifest, last)


def test_a_pack_is_about_one_bundle(pack, small, dense_bundle):
    check_bundle(pack.root, small.root)
    with pytest.raises(BundleError, match="about another bundle"):
        check_bundle(pack.root, dense_bundle.root)
    with pytest.raises(InputError, match="no evidence pack"):
        check_bundle(small.root, small.root)
