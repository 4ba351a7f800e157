"""STOW-RS with real clients: dicomweb-client, Orthanc's DICOMweb plugin, and HTTP by hand for what no client sends."""

import socket
import ssl
import threading
from contextlib import contextmanager
from io import BytesIO

import httpx
import pydicom
import pytest
import uvicorn
from authority import Authority
from box import wait_for
from dicomweb_client.api import DICOMwebClient
from orthanc_dicomweb import orthanc
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from hscc_edge.serve.config import Config, Listener, Web
from hscc_edge.serve.doors.multipart import Parts
from hscc_edge.serve.doors.tokens import add_token, remove_token
from hscc_edge.serve.station import Station, open_state
from hscc_edge.serve.web import connections
from hscc_edge.serve.web import server as web

KIND = 'multipart/related; type="application/dicom"; boundary=line'


@contextmanager
def serving(root, **settings):
    """The HTTP door on a socket; yields (station, URL of STOW-RS)."""
    config = Config(state=root / "state", model=(), **{"reserve_mib": 1, "web": Web(stow=True), **settings})
    station = Station(config, open_state(config.state))
    app, protocol = web.application(station), connections.guarded_protocol
    options = uvicorn.Config(app, http=protocol, log_level="critical", lifespan="off", timeout_graceful_shutdown=5)
    options.load()
    if config.web.tls is not None:
        options.ssl = web.server_context(config.web.tls)
    server = uvicorn.Server(options)
    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        scheme = "http" if config.web.tls is None else "https"
        try:
            yield station, f"{scheme}://127.0.0.1:{door.getsockname()[1]}/dicom-web"
        finally:
            server.should_exit = True
            thread.join()
            app.state.desk.close()


@pytest.fixture
def door(tmp_path):
    with serving(tmp_path) as found:
        yield found


@pytest.fixture
def files(phantom):
    return [phantom.path(item) for item in phantom.instances[:3]]


def rows(station) -> list[tuple[str, str]]:
    journal = station.journal()
    try:
        return journal.read("SELECT sop, file FROM instances WHERE door = 'stow' ORDER BY sop")
    finally:
        journal.close()


def left_behind(station) -> list[str]:
    """Files below the state directory that no row stands for."""
    known = {file for _, file in rows(station)}
    below = [*(station.config.state / "spool").iterdir(), *(station.config.state / "drafts").rglob("*.part")]
    return [path.name for path in below if path.name not in known]


def body(*contents: bytes, kind: str = "application/dicom", boundary: str = "line") -> bytes:
    parts = [f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode() + content for content in contents]
    return b"".join([*parts, f"\r\n--{boundary}--\r\n".encode()])


def post(url: str, content: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/studies", content=content, headers={"Content-Type": KIND, **headers}, trust_env=False)


@contextmanager
def begun(url: str, content: bytes, announced: int):
    """A connection on which a request was begun that announces more than was sent."""
    host, port = url.split("/")[2].split(":")
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: {host}\r\nContent-Type: {KIND}\r\n"
    head += f"Content-Length: {announced}\r\n\r\n"
    with socket.create_connection((host, int(port))) as client:
        client.sendall(head.encode() + content)
        yield client


def reasons(answer: dict) -> list[int]:
    items = [*answer.get("00081198", {}).get("Value", ()), *answer.get("0008119A", {}).get("Value", ())]
    return [item["00081197"]["Value"][0] for item in items]


def encoded(dataset: pydicom.Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def test_a_client_stores_instances_of_several_transfer_syntaxes(door, files):
    station, url = door
    datasets = [pydicom.dcmread(path) for path in files]
    datasets[1].compress(RLELossless, generate_instance_uid=False)
    datasets[2].file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    answer = DICOMwebClient(url).store_instances(datasets)
    expected = sorted(str(dataset.SOPInstanceUID) for dataset in datasets)
    assert sorted(item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence) == expected
    assert "FailedSOPSequence" not in answer
    assert [sop for sop, _ in rows(station)] == expected
    for sop, file in rows(station):
        kept = pydicom.dcmread(station.spool().path(file))
        assert kept == next(dataset for dataset in datasets if dataset.SOPInstanceUID == sop)
    assert not left_behind(station)


def test_orthanc_sends_and_is_told_of_success(door, files, tmp_path):
    station, url = door
    with orthanc(tmp_path / "orthanc", {"ours": [f"{url}/"]}) as rest:
        identifiers = [
            httpx.post(f"{rest}/instances", content=path.read_bytes(), trust_env=False).json()["ID"] for path in files
        ]
        sent = httpx.post(
            f"{rest}/dicom-web/servers/ours/stow",
            json={"Resources": identifiers, "Synchronous": True},
            timeout=30,
            trust_env=False,
        )
    assert sent.status_code == 200, sent.text
    assert [sop for sop, _ in rows(station)] == sorted(str(pydicom.dcmread(path).SOPInstanceUID) for path in files)


def test_each_part_has_its_own_outcome(door, files):
    """202: the good one is kept, of the others each is named with its reason where it has a name."""
    station, url = door
    good, deflated, odd = (pydicom.dcmread(path) for path in files)
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    odd.SOPClassUID = odd.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.2.1.1"
    found = post(url, body(encoded(good), encoded(deflated), encoded(odd), b"no DICOM"))
    assert (found.status_code, found.headers["content-type"]) == (202, "application/dicom+json")
    answer = found.json()
    assert reasons(answer) == [0x0122, 0xC000, 0xC000]
    assert answer["00081198"]["Value"][0]["00081155"]["Value"] == [str(odd.SOPInstanceUID)]
    assert [sop for sop, _ in rows(station)] == [str(good.SOPInstanceUID)]
    assert not left_behind(station)


def test_the_study_of_the_url_must_be_the_instances(door, files):
    station, url = door
    dataset = pydicom.dcmread(files[0])
    other = httpx.post(
        f"{url}/studies/{generate_uid()}", content=body(encoded(dataset)), headers={"Content-Type": KIND},
        trust_env=False,
    )  # fmt: skip
    assert (other.status_code, reasons(other.json())) == (409, [0xA901])
    assert not rows(station)
    own = httpx.post(
        f"{url}/studies/{dataset.StudyInstanceUID}", content=body(encoded(dataset)), headers={"Content-Type": KIND},
        trust_env=False,
    )  # fmt: skip
    assert own.status_code == 200
    assert len(rows(station)) == 1


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Content-Type": "application/dicom"}, b"x", 415),
        ({"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=line'}, b"x", 415),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, b"x", 415),
        ({"Content-Type": "multipart/related; boundary=" + "b" * 300}, b"x", 400),
        ({"Accept": "application/dicom+xml"}, body(b"x"), 406),
        ({}, b"--other\r\n\r\nx\r\n--other--", 400),
        ({}, b"", 400),
        ({}, b"--line--\r\n", 400),
        ({}, body(b"x", kind="image/jpeg"), 400),
        ({"Origin": "http://evil.example"}, body(b"x"), 403),
    ],
)
def test_what_is_no_store_request_is_refused_whole(door, headers, content, status):
    station, url = door
    assert post(url, content, **headers).status_code == status
    assert not rows(station)
    assert not left_behind(station)


def test_a_body_that_breaks_off_keeps_nothing(door, files):
    station, url = door
    whole = body(files[0].read_bytes(), files[1].read_bytes())
    assert post(url, whole[:-10]).status_code == 400
    with begun(url, whole[:-100], len(whole)):
        assert wait_for(lambda: len(left_behind(station)) == 2)
    assert wait_for(lambda: not left_behind(station))
    assert not rows(station)


def test_a_part_above_the_limit_is_refused_while_it_comes(tmp_path):
    with serving(tmp_path, dicom=Listener(max_object_mib=1)) as (station, url):
        assert post(url, body(b"\0" * (2 << 20))).status_code == 413
        assert not left_behind(station)


def test_a_sender_that_drips_is_given_up(tmp_path):
    with serving(tmp_path, dicom=Listener(idle_s=0.3)) as (station, url):
        with begun(url, b"--line\r\n\r\n", 99999) as client:
            answered = client.makefile("rb").readline()
        assert answered.startswith(b"HTTP/1.1 408 ")
        assert wait_for(lambda: not left_behind(station))


def test_no_room_is_503_and_nothing_is_kept(tmp_path, files):
    with serving(tmp_path, reserve_mib=10**9) as (station, url):
        found = post(url, body(files[0].read_bytes()))
        assert (found.status_code, found.headers["retry-after"]) == (503, "10")
        assert not rows(station)


def test_a_token_opens_until_it_is_taken_back(tmp_path, files):
    tokens = tmp_path / "tokens"
    token = add_token(tokens, "scanner")
    assert token not in tokens.read_text()
    content = body(files[0].read_bytes())
    with serving(tmp_path, web=Web(stow=True, tokens=tokens)) as (_, url):
        refused = post(url, content)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="hscc-edge"')
        assert post(url, content, Authorization=f"Bearer {token}x").status_code == 401
        assert post(url, content, Authorization=f"Basic {token}").status_code == 401
        assert post(url, content, Authorization=f"Bearer {token}").status_code == 200
        remove_token(tokens, "scanner")
        assert post(url, content, Authorization=f"Bearer {token}").status_code == 401
        tokens.write_text("not a hash\n")
        assert post(url, content, Authorization=f"Bearer {token}").status_code == 401


def test_mutual_tls_opens_without_a_token(tmp_path, files):
    tls = Authority(tmp_path / "authority").sign("own")
    with serving(tmp_path, web=Web(stow=True, tls=tls)) as (station, url):
        context = ssl.create_default_context(cafile=str(tls.authorities))
        request = {"content": body(files[0].read_bytes()), "headers": {"Content-Type": KIND}}
        with httpx.Client(verify=context, trust_env=False) as stranger:
            assert stranger.post(f"{url}/studies", **request).status_code == 403
        context.load_cert_chain(tls.certificate, tls.key)
        with httpx.Client(verify=context, trust_env=False) as known:
            assert known.post(f"{url}/studies", **request).status_code == 200
        assert len(rows(station)) == 1


def test_parts_come_whole_however_the_body_is_cut(tmp_path):
    contents = [b"\r\n--lin\r\n-line", b"", b"\r\n\r\n--", bytes(range(256)) * 40]
    whole = body(*contents)
    for size in (1, 2, 3, 7, 64, len(whole)):
        names = (tmp_path / str(number) for number in range(len(contents)))
        parts = Parts(b"line", lambda names=names: next(names), 1 << 20)
        for start in range(0, len(whole), size):
            parts.write(whole[start : start + size])
        assert [part.path.read_bytes() for part in parts.close()] == contents
        parts.drop()
        assert not list(tmp_path.iterdir())
