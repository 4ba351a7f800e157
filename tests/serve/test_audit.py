"""The audit file: whatever is done to a line, `verify` finds it; what a power loss leaves, it does not mind."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hscc_edge.errors import StorageError
from hscc_edge.serve import audit as module
from hscc_edge.serve.audit import NAME, audit, files, head, mend, read, seal, verify
from hscc_edge.serve.config import Config
from hscc_edge.serve.station import Station

KEY = bytes(range(32))


def make(state: Path) -> Station:
    state.mkdir(exist_ok=True)
    return Station(Config(state=state, model=()), KEY)


def faults(station: Station) -> list[str]:
    journal = station.journal()
    try:
        return verify(station.config.state, KEY, journal)[1]
    finally:
        journal.close()


def sealed(station: Station) -> None:
    journal = station.journal()
    seal(station, journal)
    journal.close()


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """Twelve sealed lines over three files."""
    state = tmp_path_factory.mktemp("chain") / "state"
    station = make(state)
    for number in range(12):
        audit(station, "login", account=f"account-{number}", count=number, right=number % 2 == 0, nothing=None)
        if number in (3, 7):
            os.rename(state / NAME, state / f"audit-{number + 1:012d}.jsonl")
    sealed(station)
    assert len(files(state)) == 3 and faults(station) == []
    return state


@pytest.fixture(scope="module")
def journal(chain):
    opened = make(chain).journal()
    yield opened
    opened.close()


def test_lines_say_who_did_what(tmp_path):
    station = make(tmp_path / "state")
    assert audit(station, "redrive", account="anna", report="1.2.840.113619.2.55.3", address="10.1.2.3", n=1.5) == 1
    audit(station, "login", account="x" * 5000, odd=float("nan"))
    sealed(station)
    first, second = read(station.config.state, KEY)
    assert (first.seq, first.action, second.seq) == (1, "redrive", 2)
    assert first.facts == {
        "account": "anna", "report": station.who("1.2.840.113619.2.55.3"), "address": "10.1.2.3", "n": 1.5,
    }  # fmt: skip
    assert second.facts["odd"] == "nan" and len(str(second.facts["account"])) == 1024
    assert not first.faults and not second.faults and first.time.endswith("+00:00")
    assert (tmp_path / "state" / NAME).stat().st_mode & 0o777 == 0o600


def _joined(state: Path) -> list[bytes]:
    return [line for path in files(state) for line in path.read_bytes().splitlines(keepends=True)]


def _spoil(state: Path, lines: list[bytes]) -> None:
    for path in files(state):
        path.unlink()
    (state / NAME).write_bytes(b"".join(lines))


ACTIONS = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 5000), st.integers(0, 7)),
    st.tuples(st.just("remove"), st.integers(0, 11), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, 12), st.integers(0, 11)),
    st.tuples(st.just("swap"), st.integers(0, 11), st.integers(0, 11)),
    st.tuples(st.just("truncate"), st.integers(1, 5000), st.just(0)),
)


def _changed(lines: list[bytes], kind: str, one: int, two: int) -> list[bytes]:
    lines = list(lines)
    if kind == "flip":
        whole = bytearray(b"".join(lines))
        whole[one % len(whole)] ^= 1 << two
        return [bytes(whole)]
    if kind == "truncate":
        whole = b"".join(lines)
        return [whole[: max(0, len(whole) - one)]]
    if kind == "remove":
        del lines[one]
    elif kind == "insert":
        lines.insert(one, lines[two])
    else:
        lines[one], lines[two] = lines[two], lines[one]
    return lines


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(ACTIONS)
def test_whatever_is_done_to_the_file_is_found(chain, journal, tmp_path, action):
    before = _joined(chain)
    after = _changed(before, *action)
    (tmp_path / NAME).write_bytes(b"".join(after))
    found = verify(tmp_path, KEY, journal)[1]
    assert bool(found) == (b"".join(after) != b"".join(before)), found


@pytest.mark.parametrize("forged", [lambda line: line.replace(b"account-11", b"account-99"), lambda line: b""])
def test_a_later_line_does_not_hide_it(chain, tmp_path, forged):
    """The last lines are gone or changed, then the daemon writes on and seals."""
    state = tmp_path / "state"
    shutil.copytree(chain, state)
    *rest, last = _joined(state)
    _spoil(state, [*rest, forged(last)])
    station = make(state)
    for _ in range(3):
        audit(station, "login", account="later")
        sealed(station)
    assert any("missing or changed" in fault for fault in faults(station))


def test_a_head_that_was_set_back_is_found(chain, tmp_path):
    state = tmp_path / "state"
    shutil.copytree(chain, state)
    station = make(state)
    journal = station.journal()
    known = head(journal, KEY)
    seq, mac, end, proof = str(journal.fact("audit_head")).split(" ")
    assert known is not None and known.seq == int(seq) == 12
    journal.set_fact("audit_head", f"11 {mac} {end} {proof}")
    assert verify(state, KEY, journal)[1] == ["the journal's record of its last line was changed"]
    journal.close()


def test_another_key_finds_every_line_wrong(chain):
    assert all(line.faults for line in read(chain, b"x" * 32))


@pytest.mark.parametrize("torn", [b'{"seq":13,"time":"2026', b"\0" * 100_000, b"\n"[:0]])
def test_what_a_power_loss_leaves_is_cut_off(chain, tmp_path, torn):
    state = tmp_path / "state"
    shutil.copytree(chain, state)
    with (state / NAME).open("ab") as file:
        file.write(torn)
    station = make(state)
    assert audit(station, "login", account="after") == 13
    sealed(station)
    assert faults(station) == []


def _write(state: Path, number: int) -> None:
    station = make(state)
    for _ in range(number):
        audit(station, "association-accepted", peer="10.0.0.1")


def test_processes_and_new_files_keep_one_chain(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FULL_BYTES", 4000)
    state = tmp_path / "state"
    station = make(state)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(state, 40)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for _ in range(20):
        sealed(station)
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    sealed(station)
    assert [line.seq for line in read(state, KEY)] == list(range(1, 161))
    assert faults(station) == [] and len(files(state)) > 5


def test_a_line_costs_the_same_in_a_long_file(tmp_path, monkeypatch):
    """What is read for one line does not grow with the file."""
    station, got = make(tmp_path / "state"), []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *given: got.append(len(found := pread(*given))) or found)
    for _ in range(600):
        audit(station, "study-received", study="abc")
    assert max(got) <= module.LONGEST and (tmp_path / "state" / NAME).stat().st_size > module.LONGEST
    assert json.loads((tmp_path / "state" / NAME).read_bytes().splitlines()[-1])["seq"] == 600


def mended(station: Station) -> int:
    journal = station.journal()
    try:
        return mend(station, journal)
    finally:
        journal.close()


@pytest.mark.parametrize("damage", ["a hole", "a part", "a hole in an unsealed file", "nothing"])
def test_what_a_power_loss_spoilt_after_the_seal_is_cut_off_and_told(damage, tmp_path):
    station = make(tmp_path / "state")
    path = station.config.state / NAME
    if damage != "a hole in an unsealed file":
        audit(station, "login", account="a")
        sealed(station)
    for number in range(4):
        audit(station, "study-received", study=f"{number:012x}")
    lines = path.read_bytes().splitlines(keepends=True)
    content, edge = b"".join(lines), len(b"".join(lines[:2]))
    spoilt = {"a part": content[: edge + 40], "nothing": content}
    path.write_bytes(spoilt.get(damage, content[:edge] + bytes(200) + content[edge + 200 :]))
    left = len(path.read_bytes()) - edge if damage != "nothing" else 0
    assert mended(station) == left and mended(station) == 0
    sealed(station)
    assert faults(station) == []
    told = [line.action for line in read(station.config.state, KEY)]
    assert told[-1] == ("study-received" if damage == "nothing" else "audit-tail-lost")


def test_a_sealed_line_is_never_cut_off(tmp_path):
    station = make(tmp_path / "state")
    for number in range(4):
        audit(station, "login", account=f"{number}")
    sealed(station)
    path = station.config.state / NAME
    path.write_bytes(path.read_bytes().replace(b'"2"', b'"5"'))
    assert mended(station) == 0 and faults(station)


def test_a_line_that_the_disk_takes_only_a_part_of_is_taken_back(tmp_path, monkeypatch):
    station = make(tmp_path / "state")
    audit(station, "login", account="a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda handle, line, write=os.write: write(handle, line[:20]))
        with pytest.raises(StorageError, match="the disk is full"):
            audit(station, "login", account="b")
    assert audit(station, "login", account="c") == 2
    sealed(station)
    assert faults(station) == []
