"""Device tables, and which device a tree of files is."""

from pathlib import Path

import pytest

from hscc_edge.errors import ConfigError, EngineError
from hscc_edge.export.devices import FLOOR, Machine, detect, parse_device, read_devices, require_supported

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


DEVICES = read_devices()
JETSONS = {key: device for key, device in DEVICES.items() if device.kind == "jetson"}


@pytest.mark.parametrize(("key", "device"), JETSONS.items(), ids=str)
def test_every_jetson_is_told_by_its_model_and_by_each_module(key, device, tmp_path):
    root = tree(tmp_path, release(38, "2.0"), f"NVIDIA Jetson {device.model} Developer Kit")
    found = detect(root)
    assert found is not None and found.device == device, "one table alone must match"
    (root / "proc/device-tree/model").write_bytes(b"A carrier board of another maker\0")
    for part in device.modules:
        (root / "proc/device-tree/compatible").write_bytes(f"nvidia,p0000-0000+{part}-super\0nvidia,tegra".encode())
        by_module = detect(root)
        assert by_module is not None and by_module.device == device, part
    assert device.modules


@pytest.mark.parametrize(("key", "device"), DEVICES.items(), ids=str)
def test_every_table_is_whole(key, device):
    assert (ROOT / "deploy" / "devices" / f"{key}.toml").is_file()
    assert len(device.dla_cores) in (0, 1, len(device.memory_gib)) and all(cores >= 0 for cores in device.dla_cores)
    assert len(device.bandwidth_gbs) in (0, len(device.memory_gib))
    assert list(device.memory_gib) == sorted(device.memory_gib, reverse=True)
    assert device.l4t.keys() == device.tensorrt.keys() == device.cuda.keys() == device.python.keys()
    assert not device.l4t or device.jetpack_min in device.l4t
    assert set(device.precisions) <= {"fp32", "fp16", "int8"}
    assert device.kind == "cpu" or set(device.rank_alignment) == {"fp16", "int8"}


@pytest.mark.parametrize(
    ("key", "l4t", "patch", "jetpack"),
    [
        ("jetson-agx-orin", (36, 4), 0, "6.1"),
        ("jetson-orin-nano", (36, 4), 3, "6.2"),
        ("jetson-orin-nano", (36, 5), 0, "6.2"),
        ("jetson-orin-nx", (39, 2), 1, "7.2"),
        ("jetson-thor", (38, 2), 0, "7.0"),
        ("jetson-thor", (38, 4), 0, "7.1"),
        ("jetson-agx-orin", (35, 4), 1, None),
        ("jetson-agx-orin", (40, 0), 0, None),
        ("igx-orin", (36, 4), 3, None),
    ],
)
def test_a_release_of_l4t_is_a_jetpack(key, l4t, patch, jetpack):
    assert Machine(l4t, DEVICES[key], patch).jetpack == jetpack


@pytest.mark.parametrize(
    ("key", "total_gib", "index"),
    [
        ("jetson-agx-orin", 61.4, 0),
        ("jetson-agx-orin", 29.9, 1),
        ("jetson-orin-nano", 7.31, 0),
        ("jetson-orin-nano", 3.4, 1),
        ("jetson-thor", 122.8, 0),
        ("jetson-orin-nx", 31.0, None),
        ("igx-orin", 61.0, None),
    ],
)
def test_usable_memory_tells_the_variant(key, total_gib, index):
    assert DEVICES[key].variant(total_gib) == index


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
        (GOOD.replace('name = "A"\n', ""), "lacks 'name'"),
        (GOOD + 'kind = "phone"\n', "kind in the device table x.toml is 'phone': expected one of jetson, pc"),
    ],
)
def test_a_bad_table_is_one_sentence(text, said):
    assert parse_device(GOOD, "x.toml").dla_cores == (1,)
    with pytest.raises(ConfigError, match=said):
        parse_device(text, "x.toml")
