"""`validate --gate`: a line for each requirement, exit codes 0, 1 and 3, and the record of each look."""

import json

import commandline
import pytest

from hscc_edge.validate.uses import read_uses

GATES = {
    0: "[parity]\nonnx = 0.01\n[latency]\nspeedup = 0.00001\n",
    1: "[memory]\npeak_mib = 1\n[parity]\nonnx = 0.01\n",
    3: "[accuracy]\nmargin_points = 2\n[parity]\nonnx = 0.01\nengine = 0.01\n",
}


@pytest.mark.parametrize("expected", GATES)
def test_the_exit_code_is_the_gates(expected, dense, phantom, tmp_path, monkeypatch, capsys):
    gate = tmp_path / "gate.toml"
    gate.write_text(GATES[expected])
    before = len(read_uses(phantom.root))
    words = ("validate", dense, "--reference", dense, "--cohort", phantom.root, "--gate", gate, "--seconds", 0)
    code, out, err = commandline.run(monkeypatch, capsys, *words, *(["--json"] if expected == 3 else []))
    assert code == expected, out + err
    if expected == 3:
        told = {line["name"]: line for line in json.loads(out)["gate"]["lines"]}
        assert told["accuracy.margin_points"]["state"] == "INCONCLUSIVE" and told["parity.onnx"]["state"] == "PASS"
        assert told["parity.engine"]["figures"].startswith("not run: ")
    else:
        word = {0: "PASS", 1: "FAIL"}[expected]
        assert f"{word:<12}  " in out and "use " in out and "of the split test" in out
    assert len(read_uses(phantom.root)) == before + 1


def test_a_margin_alone_is_answered_and_not_enforced(dense, phantom, monkeypatch, capsys):
    words = ("validate", dense, "--reference", dense, "--cohort", phantom.root, "--seconds", 0)
    code, out, _ = commandline.run(monkeypatch, capsys, *words, "--margin", 1)
    assert code == 0 and "INCONCLUSIVE  accuracy.margin_points" in out and "this margin needs about" in out
    code, _, err = commandline.run(monkeypatch, capsys, *words, "--margin", 0)
    assert code == 2 and "clinically acceptable" in err
