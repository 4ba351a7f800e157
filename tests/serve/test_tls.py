"""Mutual TLS with dcmtk and openssl's certificates: who is let in, who is not, and a certificate that is changed."""

import shutil
import signal
import socket
import ssl
from pathlib import Path

import pydicom
import pytest
from authority import Authority
from box import Box, storescu, wait_for
from doorway import doorway
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE

from hscc_edge.errors import ConfigError
from hscc_edge.serve.config import Config, Listener, Tls
from hscc_edge.serve.operations.certificates import Certificate, certificates
from hscc_edge.serve.tls import client_context, server_context


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def own(authority):
    return authority.sign("edge", days=10)


@pytest.fixture(scope="module")
def modality(authority):
    return authority.sign("modality")


@pytest.fixture
def files(phantom):
    return [phantom.path(item) for item in phantom.instances[:2]]


def own_of(tls: Tls) -> Certificate:
    (found,) = [item for item in certificates(Config(Path(), (), dicom=Listener(tls=tls))) if item.part == "own"]
    return found


def words(tls: Tls) -> tuple[str, ...]:
    return "+tls", str(tls.key), str(tls.certificate), "+cf", str(tls.authorities)


def test_dcmtk_stores_with_a_certificate_of_our_authority_and_nobody_else_does(
    tmp_path, authority, own, modality, files
):
    stranger = Authority(tmp_path / "stranger", "stranger").sign("modality")
    expired = authority.sign("expired", days=0)
    assert wait_for(lambda: own_of(expired).days < 0, 5)
    trusted_stranger = Tls(stranger.certificate, stranger.key, authority.certificate)
    with doorway(tmp_path, Listener(tls=own)) as door:
        assert storescu(door.port, files[:1], *words(trusted_stranger)) == set()
        assert storescu(door.port, files[:1], *words(expired)) == set()
        assert storescu(door.port, files[:1], "+tla", "+cf", str(authority.certificate)) == set()
        assert storescu(door.port, files[:1]) == set()
        assert door.rows() == []
        assert storescu(door.port, files, *words(modality)) == set(files)
        assert len(door.rows()) == len(files)


def test_a_peer_that_stalls_its_handshake_keeps_nobody_waiting(tmp_path, own, modality, files):
    with doorway(tmp_path, Listener(tls=own, idle_s=5.0)) as door:
        silent = [socket.create_connection(("127.0.0.1", door.port)) for _ in range(5)]
        silent[0].sendall(b"\x16\x03\x01")
        assert storescu(door.port, files, *words(modality)) == set(files)
        for connection in silent:
            connection.close()


def test_the_profile_wants_tls_1_2_and_ephemeral_authenticated_ciphers(tmp_path, own, modality):
    def agreed(change) -> str:
        context = client_context(modality)
        change(context)
        plain = socket.create_connection(("127.0.0.1", door.port), timeout=10)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as found:
            return f"{found.version()} {found.cipher()[0]}"

    def only_1_2(context: ssl.SSLContext, ciphers: str) -> None:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(ciphers)

    with doorway(tmp_path, Listener(tls=own)) as door:
        assert agreed(lambda context: None).startswith("TLSv1.3")
        assert agreed(lambda context: only_1_2(context, "ECDHE+AESGCM")).startswith("TLSv1.2 ECDHE-ECDSA-AES")
        for old in ("AES128-SHA:ECDHE-ECDSA-AES128-SHA", "DHE-RSA-AES256-GCM-SHA384"):
            with pytest.raises(ssl.SSLError):
                agreed(lambda context, old=old: only_1_2(context, old))


def test_days_left_and_files_that_do_not_fit(tmp_path, own, modality):
    assert 9 < own_of(own).days <= 10
    with pytest.raises(ConfigError, match="belong together"):
        server_context(Tls(own.certificate, modality.key, own.authorities))
    with pytest.raises(ConfigError, match="authorities"):
        server_context(Tls(own.certificate, own.key, tmp_path / "none.pem"))
    unread = own_of(Tls(own.key, own.key, own.authorities))
    assert unread.days is None and "cannot be read" in unread.fault


def test_a_changed_certificate_is_used_after_sighup_and_a_running_association_goes_on(
    tmp_path, authority, own, modality, files, dense
):
    shutil.copy(own.certificate, tmp_path / "own.pem")
    shutil.copy(own.key, tmp_path / "own.key")
    more = f'[dicom.tls]\ncertificate = "own.pem"\nkey = "own.key"\nauthorities = "{own.authorities}"'
    box = Box(tmp_path, dense, 1, more=more, quiet_s=600)
    process, port = box.start()

    def shown() -> bytes | None:
        plain = socket.create_connection(("127.0.0.1", port), timeout=10)
        with client_context(modality).wrap_socket(plain, server_hostname="127.0.0.1") as found:
            return found.getpeercert(binary_form=True)

    try:
        entity = AE("MODALITY")
        entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
        peer = entity.associate(
            "127.0.0.1", port, ae_title="HSCC_EDGE", tls_args=(client_context(modality), "127.0.0.1")
        )
        first, second = (pydicom.dcmread(path) for path in files)
        assert peer.send_c_store(first).Status == 0x0000
        before, changed = shown(), authority.sign("changed")
        shutil.copy(changed.certificate, tmp_path / "own.pem")
        shutil.copy(changed.key, tmp_path / "own.key")
        process.send_signal(signal.SIGHUP)
        assert wait_for(lambda: "event=reloaded" in box.log.read_text())
        assert wait_for(lambda: shown() == ssl.PEM_cert_to_DER_cert(changed.certificate.read_text()) != before)
        assert peer.is_established
        assert peer.send_c_store(second).Status == 0x0000
        peer.release()
        (tmp_path / "own.pem").write_text("not a certificate")
        process.send_signal(signal.SIGHUP)
        assert wait_for(lambda: "event=reload_refused" in box.log.read_text())
        assert storescu(port, files, *words(modality)) == set(files)
    finally:
        process.terminate()
        process.wait(30)
    assert box.states() == {"received": 2}


def test_silent_connections_leave_the_lobby_with_tls_as_well(tmp_path, own, modality, files):
    with doorway(tmp_path, Listener(tls=own)) as door:
        silent = [socket.create_connection(("127.0.0.1", door.port), timeout=30) for _ in range(100)]
        assert silent[0].recv(1) == b""
        assert storescu(door.port, files, *words(modality)) == set(files)
        for connection in silent:
            connection.close()
