"""Verbs on another machine, over a real OpenSSH server on loopback."""

import getpass
import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from sshd import Station, key
from typer.testing import CliRunner

from hscc_edge import __version__
from hscc_edge.bundle import read_bundle
from hscc_edge.cli import app
from hscc_edge.errors import GateError, InputError, RemoteError
from hscc_edge.export.remote import Host, parcel, parse_host, run_there


def words_back(station: Station) -> None:
    """Make hscc-edge answer with its words and what lies in its directory."""
    station.put("hscc-edge", f"""\
[ "$1" = --version ] && {{ echo {__version__}; exit; }}
exec {sys.executable} -c 'import json, os, sys; from pathlib import Path
print("a verb beneath it printed this")
print(json.dumps({{"words": sys.argv[1:], "place": os.getcwd(), "mode": os.stat(".").st_mode & 0o777,
 "files": {{str(p): p.read_text() for p in Path(".").rglob("*") if p.is_file() and p.parts[0] == "sent"}}}}))' "$@"
""")  # fmt: skip


def build_there(bundle: Path, *words: str) -> dict:
    done = CliRunner().invoke(app, ["build", str(bundle), "--on", "ssh://jetson", "--json", *words])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_the_bundle_s_engine_is_built_there(station, dense):
    found = build_there(dense, "--precision", "fp32", "--seconds", "0")
    engine = Path(found["engine"]["path"])
    assert engine.is_relative_to(station.root / "cache") and engine.stat().st_size == found["engine"]["bytes"]
    assert found["engine"]["onnx_sha256"] == read_bundle(dense).files["models/model.onnx"]
    assert found["host"] == "jetson" and found["place"] is None and found["bench"] == {}


def test_what_it_was_built_of_and_how_fast_it_is_come_back(station, dense):
    digest = read_bundle(dense).files["models/model.onnx"]
    facts = {"onnx_sha256": digest, "path": "/e", "builder": "b", "version": "1", "device": "d", "bytes": 1,
             "seconds": 1.0, "note": "n"}  # fmt: skip
    answers = f"""[ $1 = --version ] && echo {__version__} && exit
case "$*" in
  build*) printf '%s\\n' '{json.dumps(facts)}';;
  *"--runtime trt --json") echo "error: no GPU" >&2; exit 2;;
  *) printf '{{"words": "%s"}}\\n' "$*";;
esac"""
    station.put("hscc-edge", answers)
    found = build_there(dense, "--precision", "fp32", "--seconds", "2")
    assert found["engine"] == facts and found["not_run"] == {"bench --runtime trt": "no GPU"}
    words = "bench bundle --precision fp32 --seconds 2.0 --runtime ort --json"
    assert found["bench"] == {"ort": {"words": words}}
    station.put("hscc-edge", answers.replace(digest, "0" * 64))
    done = CliRunner().invoke(app, ["build", str(dense), "--precision", "fp32", "--on", "ssh://jetson"])
    assert "built an engine of another ONNX file" in str(done.exception)


def test_only_the_configuration_and_the_graph_are_sent(dense, tmp_path):
    sent = parcel(read_bundle(dense), ["models/model.onnx"])
    for name, content in sent.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    found = read_bundle(tmp_path / "bundle")
    assert {name for name in found.files if not name.startswith("configs/")} == {"models/model.onnx"}
    assert found.spec == read_bundle(dense).spec


HOSTILE = ["a b", "$(touch owned)", "`touch owned`", "'; touch owned; '", '"', "\\", "*", "-x", "", "a\nb", "!!", "ä"]


def test_words_arrive_as_they_are(station):
    words_back(station)
    files = {"sent/a": b"one", "sent/b c/$d": b"two"}
    visit = run_there(parse_host(f"ssh://{getpass.getuser()}@127.0.0.1:{station.port}"), files, [HOSTILE, ["second"]])
    first, second = visit.content(0), visit.content(1)
    assert first["words"] == [*HOSTILE, "--json"] and second["words"] == ["second", "--json"]
    assert first["files"] == {name: content.decode() for name, content in files.items()}
    assert Path(first["place"]).parent == station.there and first["mode"] == 0o700 and visit.place is None


def test_the_files_stay_if_that_is_asked_for(station):
    words_back(station)
    visit = run_there(Host("jetson"), {"sent/a": b"one"}, [["x"]], keep=True)
    assert visit.place == visit.content(0)["place"] and (Path(visit.place) / "sent/a").read_bytes() == b"one"
    shutil.rmtree(visit.place)


def test_a_verb_s_own_message_and_code_are_passed_on(station, dense):
    sent = parcel(read_bundle(dense), [])
    visit = run_there(Host("jetson"), sent, [["build", "bundle", "--precision", "fp32"], ["never"]])
    assert len(visit.answers) == 1, "a verb that is needed and fails ends the row"
    with pytest.raises(
        RemoteError, match=r"^on jetson: the bundle bundle holds no models/model.onnx: run hscc-edge exp"
    ):
        visit.content(0)
    station.put("hscc-edge", f"[ $1 = --version ] && echo {__version__} || {{ echo 'error: it differs' >&2; exit 1; }}")
    with pytest.raises(GateError, match="on jetson: it differs"):
        run_there(Host("jetson"), {}, [["x"]]).content(0)
    visit = run_there(Host("jetson"), {}, [["x"], ["y"]], needed=0)
    assert [answer.reason for answer in visit.answers] == ["it differs", "it differs"]


MISTAKES = [
    ("hscc-edge", "echo 0.0.1", f"the hscc-edge of jetson is 0.0.1, the one here {__version__}: install the same"),
    ("hscc-edge", "echo no such option >&2; exit 2", "the hscc-edge of jetson is older, or broken"),
    ("tar", "cat >/dev/full", "the disk of jetson is full"),
    ("tar", "/usr/bin/tar \"$@\"; printf x >>sent/a", "the files arrived at jetson altered"),
    ("mktemp", "echo mktemp: no >&2; exit 1", "jetson has no place for a directory (mktemp: no)"),
    ("tar", "echo tar: no >&2; exit 2", "jetson could not unpack the files (tar: no)"),
    ("tar", "kill -KILL $PPID", "ssh to jetson failed (it said nothing)"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "text", "sentence"), MISTAKES, ids=[sentence[:40] for *_, sentence in MISTAKES])
def test_what_goes_wrong_there_is_one_sentence(program, text, sentence, station):
    station.put(program, text)
    with pytest.raises(RemoteError) as caught:
        run_there(Host("jetson"), {"sent/a": b"x" * 100_000}, [["x"]])
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)
    if "KILL" in text:
        for path in station.there.iterdir():
            shutil.rmtree(path)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ssh://jetson/opt/none/hscc-edge", "jetson finds no /opt/none/hscc-edge: install hscc_edge there, or give"),
        ("ssh://jetson:1", "jetson cannot be reached (ssh: connect to host 127.0.0.1 port 1: Connection refused)"),
        ("ssh://no-such.invalid", "the name no-such.invalid is not known"),
    ],
)
def test_a_place_that_is_not_there_is_one_sentence(url, sentence, station):
    with pytest.raises(RemoteError) as caught:
        run_there(parse_host(url), {}, [["x"]])
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("known_hosts", "", "the host key of jetson is not known here: connect once with ssh jetson"),
        ("known_hosts", None, "the host key of jetson is another than known_hosts has"),
        ("authorized_keys", "", "jetson refuses the login: give it your public key"),
    ],
)
def test_a_host_that_is_not_trusted_or_does_not_trust_us_is_one_sentence(file, text, sentence, station, tmp_path):
    path = station.root / file
    before = path.read_text()
    path.write_text("jetson " + key(tmp_path / "other") if text is None else text)
    try:
        with pytest.raises(RemoteError) as caught:
            run_there(Host("jetson"), {}, [["x"]])
    finally:
        path.write_text(before)
    assert str(caught.value).startswith(sentence)


def test_a_machine_without_ssh_and_one_that_does_not_answer_are_told(station, monkeypatch):
    station.put("hscc-edge", f"[ $1 = --version ] && echo {__version__} || sleep 3")
    with pytest.raises(RemoteError, match="jetson gave no answer in 1 s"):
        run_there(Host("jetson"), {}, [["x"]], patience_s=1.0)
    for _ in range(100):  # the device goes on, and cleans up when its verb ends
        if not list(station.there.iterdir()):
            break
        time.sleep(0.1)
    monkeypatch.setenv("PATH", str(station.shadow))
    with pytest.raises(RemoteError, match="ssh is not installed"):
        run_there(Host("jetson"), {}, [["x"]])


def test_addresses_are_read():
    assert parse_host("ssh://hscc@jetson") == Host("jetson", "hscc")
    assert parse_host("ssh://jetson:2222/opt/venv/bin/hscc-edge") == Host(
        "jetson", None, 2222, "/opt/venv/bin/hscc-edge"
    )
    assert parse_host("ssh://a.b@[fe80::1]:22/").command()[-5:] == ["a.b", "-p", "22", "--", "fe80::1"]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("jetson", "is not one of a machine"),
        ("http://jetson", "is not one of a machine"),
        ("ssh://", "is not one of a machine"),
        ("ssh://-oProxyCommand=x", "is not one of a machine"),
        ("ssh://-l@jetson", "is not one of a machine"),
        ("ssh://a b@jetson", "is not one of a machine"),
        ("ssh://jetson:99999", "cannot be read"),
        ("ssh://jetson:0", "is not one of a machine"),
        ("ssh://jetson?x=1", "is not one of a machine"),
        ("ssh://hscc:geheim@jetson", "holds a password"),
    ],
)
def test_what_is_no_address_is_refused(url, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        parse_host(url)
    assert "geheim" not in str(caught.value)
