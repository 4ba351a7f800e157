"""Device tables, and which device a tree of files is."""

from pathlib import Path

import pytest

from hscc_edge.errors import ConfigError, EngineError
from hscc_edge.export.devices import FLOOR, detect, parse_device, read_devices, require_supported

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
name = "A"
model = "Orin A"
dla_cores = [1]
jetpack_min = "6.1"
tensorrt = { "6.1" = "10.3" }
rank_alignment = { fp16 = 8 }
"""


def tree(root: Path, release: str, model: str) -> Path:
    (root / "etc").mkdir()
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "etc/nv_tegra_release").write_text(release)
    (root / "proc/device-tree/model").write_bytes(model.encode() + b"\0")
    return root


def release(major: int, revision: str) -> str:
    return (
        f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: aarch64\n# KERNEL_VARIANT: oot\n"
    )


@pytest.mark.parametrize(("key", "device"), read_devices().items(), ids=str)
def test_every_table_is_whole(key, device, tmp_path):
    found = detect(tree(tmp_path, release(38, "2.0"), f"NVIDIA Jetson {device.model} Developer Kit"))
    assert found is not None and found.device == device, "one table alone must match"
    assert device.jetpack_min in device.tensorrt and set(device.rank_alignment) == {"fp16", "int8"}
    assert len(device.dla_cores) in (1, len(device.memory_gib)) and all(cores >= 0 for cores in device.dla_cores)
    assert (ROOT / "deploy" / "devices" / f"{key}.toml").is_file()


@pytest.mark.parametrize(
    ("major", "revision", "supported"),
    [(32, "7.1", False), (35, "6.0", False), (36, "3.0", False), (36, "4.0", True), (36, "4.3", True), (39, "2", True)],
)
def test_the_floor_is_jetpack_6_1(major, revision, supported, tmp_path):
    machine = detect(tree(tmp_path, release(major, revision), "NVIDIA Jetson Orin Nano Developer Kit Super"))
    assert machine is not None and (machine.l4t >= FLOOR) is supported
    if supported:
        require_supported(machine)
        return
    with pytest.raises(EngineError, match=rf"this Jetson Orin Nano runs L4T {major}\.\d, older than JetPack 6\.1"):
        require_supported(machine)


def test_an_unknown_jetson_is_a_jetson_and_a_workstation_is_none(tmp_path):
    assert detect(tmp_path) is None
    require_supported(None)
    machine = detect(tree(tmp_path, release(36, "4.0"), "NVIDIA Jetson of Tomorrow"))
    assert machine is not None and machine.device is None
    require_supported(machine)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "x.toml is not TOML"),
        (GOOD + "sm = 87\n", "unknown key 'sm': expected some of"),
        (GOOD.replace("dla_cores = [1]\n", ""), "lacks 'dla_cores'"),
    ],
)
def test_a_bad_table_is_one_sentence(text, said):
    assert parse_device(GOOD, "x.toml").dla_cores == (1,)
    with pytest.raises(ConfigError, match=said):
        parse_device(text, "x.toml")
