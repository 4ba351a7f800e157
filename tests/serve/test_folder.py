"""The watched folder: what settles is taken in and removed, the rest is put aside with its reason, no link followed."""

import os
import shutil
import socket
from dataclasses import replace

import pydicom
import pytest
from box import Box, wait_for
from pydicom.uid import DeflatedExplicitVRLittleEndian

from hscc_edge.serve.config import Config, Folder, Listener
from hscc_edge.serve.doors.admission import Admission
from hscc_edge.serve.doors.folder import Entry, Watch, _copy, _shape
from hscc_edge.serve.doors.receiver import receive
from hscc_edge.serve.station import Station, open_state


@pytest.fixture
def watching(tmp_path):
    """(station, folder, function that looks at it as often as settling takes)."""
    made = []

    def make(settle_s: float = 0.0, **settings):
        folder = Folder(tmp_path / "drop", settle_s)
        folder.path.mkdir(exist_ok=True)
        config = Config(state=tmp_path / "state", model=(), **{"reserve_mib": 1, **settings})
        station = Station(config, open_state(config.state))
        admission = Admission(station, station.journal(), station.spool())
        made.append(admission)
        return station, folder.path, Watch(station, folder, admission)

    yield make
    for admission in made:
        admission.close()


def kept(station) -> list[tuple[str, str]]:
    journal = station.journal()
    try:
        return journal.read("SELECT sop, state FROM instances WHERE door = 'folder' ORDER BY sop")
    finally:
        journal.close()


def below(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_a_study_is_taken_in_by_the_daemon_and_removed(tmp_path, phantom, dense):
    files = [phantom.path(item) for item in next(iter(phantom.cases("study").values()))]
    (tmp_path / "drop").mkdir()
    more = '[[folder]]\npath = "drop"\nsettle_s = 0.2\n'
    with receive(tmp_path / "archive") as port:
        station = Box(tmp_path, dense, port, more=more)
        with station.running():
            (tmp_path / "drop" / "export").mkdir()
            for path in files:
                shutil.copy(path, tmp_path / "drop" / "export" / path.name)
            assert wait_for(lambda: station.states().get("reported") == len(files))
            assert wait_for(lambda: not below(tmp_path / "drop"))
            assert wait_for(lambda: len(list((tmp_path / "archive").glob("*.dcm"))) == 1)


def test_a_file_waits_until_it_has_settled(watching, phantom):
    station, folder, watch = watching(settle_s=0.3)
    content = phantom.path(phantom.instances[0]).read_bytes()
    path = folder / "image"
    path.write_bytes(content[:1000])
    for size in (2000, 4000, len(content)):
        watch.step()
        path.write_bytes(content[:size])
    assert watch.step() == 0 and not kept(station)
    assert wait_for(lambda: watch.step() == 1)
    assert len(kept(station)) == 1
    assert not below(folder)
    assert not list((station.config.state / "drafts").rglob("*.part"))


def test_what_is_refused_is_put_aside_with_a_reason_that_names_nobody(watching, phantom):
    station, folder, watch = watching(dicom=Listener(max_object_mib=1))
    dataset = pydicom.dcmread(phantom.path(phantom.instances[0]))
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(folder / f"{dataset.PatientID}.dcm")
    (folder / "text").write_text("no DICOM")
    (folder / "empty").write_bytes(b"")
    (folder / "large").write_bytes(b"\0" * (2 << 20))
    (folder / "odd\n\udc80name").write_text("no DICOM")
    assert watch.step() == 0
    assert not kept(station)
    assert len(below(folder)) == 10 == len(below(folder / "refused"))
    reasons = {path.name: path.read_text() for path in (folder / "refused").glob("*.reason")}
    assert len(reasons) == 5
    assert reasons["large.reason"] == "larger than max_object_mib in [dicom]\n"
    assert reasons["text.reason"] == "status 0xc000: not parsable\n"
    assert not any(dataset.PatientID in text or dataset.SOPInstanceUID in text for text in reasons.values())


def test_refused_files_of_one_name_do_not_replace_each_other(watching):
    _, folder, watch = watching()
    for content in ("one", "two"):
        (folder / "name").write_text(content)
        watch.step()
    found = [path.read_text() for path in (folder / "refused").iterdir() if path.suffix != ".reason"]
    assert sorted(found) == ["one", "two"]


def test_links_and_special_files_are_not_followed(watching, phantom, tmp_path):
    station, folder, watch = watching()
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    shutil.copy(phantom.path(phantom.instances[0]), secret / "image.dcm")
    (folder / "file-link").symlink_to(secret / "image.dcm")
    (folder / "folder-link").symlink_to(secret, target_is_directory=True)
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "socket"))
        assert watch.step() == 0
    assert not kept(station)
    names = {"file-link", "folder-link", "dangling", "pipe", "socket"}
    assert {path.name for path in (folder / "refused").iterdir()} == names | {f"{name}.reason" for name in names}
    assert (secret / "image.dcm").exists()


def test_a_link_in_place_of_the_refused_folder_leads_nowhere(watching, tmp_path):
    _, folder, watch = watching()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "refused").symlink_to(elsewhere, target_is_directory=True)
    (folder / "text").write_text("no DICOM")
    watch.step()
    assert not list(elsewhere.iterdir())
    assert (folder / "text").exists()


def test_without_room_a_file_stays(watching, phantom):
    station, folder, watch = watching(reserve_mib=10**9)
    shutil.copy(phantom.path(phantom.instances[0]), folder / "image.dcm")
    assert watch.step() == 0
    assert below(folder) == ["image.dcm"]
    assert not kept(station)


def test_what_comes_again_is_known(watching, phantom):
    """As after a crash between admission and removal."""
    station, folder, watch = watching()
    for _ in range(2):
        shutil.copy(phantom.path(phantom.instances[0]), folder / "image.dcm")
        assert watch.step() == 1
    assert len(kept(station)) == 1
    assert len(list((station.config.state / "spool").iterdir())) == 1


def test_a_file_that_changes_while_it_is_copied_is_not_taken(tmp_path):
    path, draft = tmp_path / "image.dcm", tmp_path / "draft"
    path.write_bytes(b"first")
    directory = os.open(tmp_path, os.O_RDONLY)
    entry = Entry(directory, path.name, _shape(path.stat()), regular=True)
    path.write_bytes(b"other, and longer")
    assert not _copy(entry, draft)
    draft.unlink()
    assert _copy(replace(entry, shape=_shape(path.stat())), draft)
    assert draft.read_bytes() == b"other, and longer"
    os.close(directory)
