"""No identifier is anywhere but in journal, spool and reports; no door opens to strangers by mistake."""

import random

import pytest
from box import CONFIG
from sentinels import DAMAGES, run

from hscc_edge.errors import ConfigError
from hscc_edge.serve.config_file import read_config


def test_no_identifier_is_found(tmp_path, phantom, dense):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    found = run(tmp_path, phantom, dense, studies=3 * len(DAMAGES) // 2, seed=seed)
    assert found["doors"] == ["dimse", "stow", "folder"]
    assert found["settled"] and found["reports"] > 0 and found["traces"] > 0
    assert found["in_spool"] > 100  # what is looked for can be found
    assert found["pages"] > 10 and found["verbs"]
    assert {"reported", "no-result"} <= found["instances"].keys()
    assert not found["found"]


CERTIFIED = 'certificate = "own.pem"\nkey = "own.key"\nauthorities = "ca.pem"\n'


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "box.example", ""])
@pytest.mark.parametrize("door", ["dicom", "web"])
def test_no_door_opens_beyond_loopback_by_mistake(tmp_path, door, host):
    def written(*lines: str) -> None:
        more = {"dicom": "", "web": "[web]\nenabled = true\nport = 0\n"}[door] + "\n".join([f'host = "{host}"', *lines])
        values = {"bundle": "b", "port": 1, "reserve_mib": 1, "quiet_s": 1, "attempts": 1, "processes": 1, "more": ""}
        values["processes" if door == "dicom" else "more"] = f"1\n{more}" if door == "dicom" else more
        (tmp_path / "serve.toml").write_text(CONFIG.format(**values))

    written('tokens = "tokens"' if door == "web" else 'allowed_ae = ["KNOWN"]')
    with pytest.raises(ConfigError, match=r"line [0-9]+: host is .* needs authentication"):
        read_config(tmp_path / "serve.toml")
    written("insecure = true")
    assert read_config(tmp_path / "serve.toml")
    written(f"[{door}.tls]", CERTIFIED)
    assert read_config(tmp_path / "serve.toml")
