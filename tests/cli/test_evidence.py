"""evidence, sign, verify and packages through the command line: exit codes, sentences, JSON."""

import json
import subprocess

import commandline
import pytest
from safetensors.numpy import save

from hscc_edge.bundle import Code, Spec, write_bundle


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *words: commandline.run(monkeypatch, capsys, *words)


@pytest.fixture
def bundle(tmp_path):
    code = Code("12738006", "SCT", "Brain")
    spec = Spec(
        name="tiny", version=1, network={"name": "alexnet", "args": {}}, decision={"unit": "study"}, findings={},
        preprocess=[{"name": "resize", "height": 16, "width": 16}, {"name": "channels", "count": 1}],
        head={"kind": "softmax", "labels": ["a", "b"]}, site=code, procedure=code,
    )  # fmt: skip
    return write_bundle(tmp_path / "bundle", spec, {"models/model.safetensors": save({})}).root


@pytest.fixture
def keys(tmp_path):
    """A key pair by openssl, as the documentation says."""
    (tmp_path / "trusted").mkdir()
    private, public = tmp_path / "key.pem", tmp_path / "trusted" / "physicist.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return private, public.parent


def test_a_pack_is_made_signed_verified_and_then_altered(run, bundle, keys, tmp_path):
    pack, (private, trusted) = tmp_path / "pack", keys
    words = ("evidence", bundle, "--out", pack, "--no-pdf", "--timestamp", "2026-11-25T08:00:00Z")
    code, out, err = run(*words, "--json")
    made = json.loads(out)
    assert code == 0, err
    assert "validation" in made["not_run"] and made["verdicts"]["fail"] == 0 and not (pack / "report.pdf").exists()
    code, _, err = run(*words)
    assert code == 2 and "stands there already" in err
    again = json.loads(run(*words, "--overwrite", "--json")[1])
    assert again == made
    signing = ("sign", pack, "--key", private, "--signer", "A. Physicist", "--timestamp", "2026-11-25T09:00:00Z")
    code, out, _ = run(*signing, "--json")
    assert code == 0 and json.loads(out)["manifest"] == made["manifest"]
    code, out, _ = run("verify", pack, "--trusted", trusted, "--bundle", bundle, "--json")
    found = json.loads(out)
    assert code == 0 and found["verified"] and found["signatures"][0]["trusted"] == "physicist"
    with (pack / "card.md").open("ab") as file:
        file.write(b" ")
    code, out, _ = run("verify", pack)
    assert code == 1 and "card.md: sha256" in out and "NOT verified" in out
    code, _, err = run(*signing)
    assert code == 2 and "does not verify: card.md" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("evidence", "{tmp}", "--out", "{tmp}/out"), "is not a bundle"),
        (("evidence", "{bundle}", "--out", "{tmp}/out", "--record", "{tmp}/absent.json"), "cannot be read"),
        (
            ("evidence", "{bundle}", "--out", "{tmp}/out", "--record", "{tmp}/odd.json"),
            "of an unknown kind: expected one",
        ),
        (("evidence", "{bundle}", "--out", "{tmp}/out", "--site", "{tmp}/absent.toml"), "cannot be read"),
        (("evidence", "{bundle}", "--out", "{tmp}/out", "--timestamp", "yesterday"), "ISO 8601"),
        (("evidence", "{bundle}", "--out", "{tmp}/out", "--approved", "{tmp}"), "is not a bundle"),
        (("verify", "{tmp}"), "has no manifest.json"),
        (("verify", "{bundle}", "--trusted", "{tmp}/absent"), "holds no public key"),
        (("sign", "{bundle}", "--key", "{tmp}/absent.pem", "--signer", "A"), "cannot be read"),
    ],
    ids=lambda words: " ".join(words[:1]) if isinstance(words, tuple) else words,
)
def test_a_mistake_is_one_sentence(words, sentence, run, bundle, tmp_path):
    (tmp_path / "odd.json").write_text('{"kind": "horoscope"}')
    code, _, err = run(*(word.format(tmp=tmp_path, bundle=bundle) for word in words))
    assert code == 2 and sentence in err and err.startswith("error: ") and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_packages_are_recorded(run, tmp_path):
    code, out, _ = run("packages", "--out", tmp_path / "packages.json", "--json")
    names = {item["name"] for item in json.loads((tmp_path / "packages.json").read_text())["packages"]}
    assert code == 0 and json.loads(out)["count"] == len(names) and {"numpy", "hscc-edge", "typer"} <= names
