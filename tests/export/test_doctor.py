"""Right device, right advice: on published trees of four generations, with one fault put in at a time, and here."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hscc_edge.cli.doctor import doctor
from hscc_edge.export.doctor import examine
from hscc_edge.export.doctor_probe import Package, Probe, failure_of, is_system, probe_system
from hscc_edge.power_mode import PowerMode, read_modes

TREES = Path(__file__).with_name("trees")
NANO, AGX, THOR, XAVIER = "orin-nano-jetpack-6.2", "agx-orin-jetpack-6.1", "thor-jetpack-7.0", "agx-xavier-jetpack-5.1"
IDENTIFIERS = ("1420000000000", "ward7-jetson", "02:00:5e:10:00:01", "38968081", "37537400", "LUKS2")
SYSTEM = Package("10.3.0", system=True)
GOOD = Probe(
    asked=True,
    tensorrt=SYSTEM,
    providers=("CPUExecutionProvider",),
    python=(3, 10),
    free_mib=40000,
    total_mib=117000,
    synchronised=True,
)
app = typer.Typer()
app.command()(doctor)


@pytest.fixture
def tree(tmp_path):
    return lambda name: shutil.copytree(TREES / name, tmp_path / name)


def found(root: Path, probe: Probe = GOOD, state: Path | None = None) -> dict:
    return {finding.name: finding for finding in examine(root, probe, state).findings}


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.mark.parametrize(
    ("name", "device", "jetpack", "mode"),
    [
        (NANO, "Jetson Orin Nano (8 GiB, SM 8.7, no DLA)", "6.2 (L4T 36.4.3): TensorRT 10.3", "15W, not the strongest"),
        (AGX, "Jetson AGX Orin (64 GiB, SM 8.7, 2 DLA)", "6.1 (L4T 36.4.0): TensorRT 10.3", "MAXN, the strongest of"),
        (THOR, "Jetson Thor (128 GiB, SM 11.0, no DLA)", "7.0 (L4T 38.2.0): TensorRT 10.13", "120W, not the strongest"),
        (XAVIER, "NVIDIA Jetson AGX Xavier Developer Kit: too old", "L4T 35.4.1", "MAXN, the strongest of"),
    ],
)
def test_each_tree_is_the_right_device(name, device, jetpack, mode):
    seen = found(TREES / name)
    assert seen["device"].text.startswith(device)
    assert seen["JetPack"].text.startswith(jetpack)
    assert seen["power mode"].text.startswith(mode)
    assert {item.name for item in seen.values() if item.state == "unknown"} == set()


def test_a_machine_in_order_gets_no_advice():
    report = examine(TREES / AGX, GOOD)
    assert not report.faulty
    assert [item for item in report.findings if item.state != "ok" or item.advice] == []


def test_a_module_too_old_is_a_fault():
    report = examine(TREES / XAVIER, GOOD)
    jetpack = next(item for item in report.findings if item.name == "JetPack")
    assert report.faulty and jetpack.state == "fault"
    assert "not made for its generation (Xavier): use a Jetson Orin" in jetpack.advice and "flash" not in jetpack.advice
    assert [item.name for item in report.findings if item.state == "fault"] == ["JetPack"]


@pytest.mark.parametrize(
    ("name", "number", "strongest", "said"),
    [(NANO, 2, True, ""), (NANO, 3, False, "sudo nvpmodel -m 2;"), (THOR, 0, True, ""), (AGX, 1, False, "-m 0;")],
)
def test_the_strongest_power_mode_is_advised(name, number, strongest, said, tree):
    root = tree(name)
    write(root, "var/lib/nvpmodel/status", f"pmode:{number:04d} fmode:quiet\n")
    mode = found(root)["power mode"]
    assert (mode.state == "ok") is strongest
    assert said in mode.advice and (said or not mode.advice)


def test_a_mode_is_not_strong_for_its_number_or_place():
    conf = "GPU MAX_FREQ 5\n< POWER_MODEL NAME=10W ID=1 >\nGPU MAX_FREQ 408\n"
    conf += "< POWER_MODEL ID=0 NAME=25W >\nGPU MAX_FREQ -1"
    assert read_modes(conf) == [PowerMode(1, "10W", 408.0), PowerMode(0, "25W", float("inf"))]
    order = ["7W", "15W", "MODE_30W", "MAXN", "MAXN_SUPER"]
    assert sorted(order, key=lambda name: PowerMode(0, name).strength) == order


@pytest.mark.parametrize(
    ("name", "path", "text", "finding", "state", "seen", "advice"),
    [
        (NANO, "var/lib/nvpmodel/status", "pmode:0009\n", "power mode", "warning", "mode 9, which", "nvpmodel -q"),
        (NANO, "etc/nvpmodel.conf", "", "power mode", "unknown", "could not be read", "nvpmodel -q"),
        (AGX, "sys/class/devfreq/17000000.gpu/max_freq", "612000000\n", "GPU clock", "warning", "1300 MHz that it",
         "max_freq below what the power mode allows: restart"),
        (NANO, "sys/class/devfreq/17000000.gpu/cur_freq", "306000000\n", "GPU clock", "ok",
         "612 MHz of the 1020 MHz that it could, as the power mode has it", ""),
        (NANO, "sys/class/devfreq/17000000.gpu/max_freq", "408000000\n", "GPU clock", "warning", "up to 408 MHz",
         "restart"),
        (THOR, "sys/class/devfreq/gpu-gpc-0/max_freq", "x", "GPU clock", "unknown", "could not be read", "--show"),
        (AGX, "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave\n", "CPU governor", "warning",
         "powersave, schedutil", "echo schedutil"),
        (AGX, "sys/class/thermal/thermal_zone1/temp", "96500\n", "temperature", "warning",
         "96 C in gpu-thermal, the hottest of 4; throttling begins at 99 C", "cooling"),
        (NANO, "sys/class/hwmon/hwmon1/curr1_crit_alarm", "1\n", "power rails", "warning", "over-current on VDD_IN",
         "supply"),
        (AGX, "proc/meminfo", "MemTotal: 64349708 kB\nMemAvailable: 1048576 kB\n", "memory", "warning", "1024 of 62841",
         "multi-user.target"),
        (AGX, "proc/meminfo", "MemTotal: 64349708 kB\nMemAvailable: 204800 kB\n", "memory", "fault", "200 of 62841",
         "stop other containers"),
        (AGX, "proc/swaps", "Filename Type Size Used Priority\n/swapfile file 2097152 0 -2\n", "swap", "ok",
         "2048 MiB on disk", "encrypted"),
        (AGX, "etc/nv_tegra_release", "# R35 (release), REVISION: 4.1\n", "JetPack", "fault", "L4T 35.4.1",
         "flash JetPack 6.1"),
        (NANO, "proc/swaps", "", "swap", "ok", "none: a large engine's build may run out", ""),
        (AGX, "proc/swaps", "", "swap", "ok", "none", ""),
        (AGX, "etc/nv_tegra_release", "# R99 (release), REVISION: 1.0\n", "JetPack", "warning", "no table knows",
         "check TensorRT"),
        (AGX, "etc/nv_tegra_release", "", "JetPack", "unknown", "could not be read", "/etc/nv_tegra_release:ro"),
    ],
)  # fmt: skip
def test_each_fault_in_the_files_gets_its_advice(name, path, text, finding, state, seen, advice, tree):
    root = tree(name)
    write(root, path, text)
    item = found(root)[finding]
    assert item.state == state and seen in item.text and advice in item.advice


PIP = "which has no kernels for this GPU (SM 8.7)"


@pytest.mark.parametrize(
    ("name", "change", "finding", "state", "seen", "advice"),
    [
        (NANO, {"tensorrt": Package("10.7.0", system=False)}, "TensorRT", "fault", PIP, "--system-site-packages"),
        (NANO, {"tensorrt": Package("11.4.1", system=False)}, "TensorRT", "fault", PIP, "sudo apt install"),
        (THOR, {"tensorrt": Package("10.13.3", system=False)}, "TensorRT", "ok", "10.13.3, from pip", ""),
        (NANO, {"tensorrt": Package("10.16.1", system=True)}, "TensorRT", "warning", "JetPack 6.2 brings 10.3", "apt"),
        (NANO, {"tensorrt": Package("10.30.0", system=True)}, "TensorRT", "warning", "brings 10.3", "apt"),
        (NANO, {"tensorrt": None}, "TensorRT", "warning", 'runtime = "ort"', "nvidia-jetpack"),
        (NANO, {"tensorrt": Package("", True, "libnvdla_compiler.so is missing")}, "TensorRT", "fault",
         "libnvdla_compiler.so", "nvidia-l4t-dla-compiler"),
        (NANO, {"tensorrt": Package("", True, "ImportError")}, "TensorRT", "fault", "ImportError", "--runtime nvidia"),
        (NANO, {"providers": ("AzureExecutionProvider", "CPUExecutionProvider")}, "ONNX Runtime", "ok", "CPU alone",
         ""),
        (NANO, {"providers": None}, "ONNX Runtime", "warning", "cannot be imported", "hscc_edge[device]"),
        (NANO, {"python": (3, 12)}, "Python", "warning", "its TensorRT for 3.10", "python3.10"),
        (NANO, {"torch": True}, "torch", "warning", "nothing here needs it", "hscc_edge[device]"),
        (NANO, {"free_mib": 3000}, "disk", "warning", "3000 of 117000 MiB", "docker image prune"),
        (NANO, {"free_mib": 900}, "disk", "fault", "900 of 117000 MiB", "0xA700"),
        (NANO, {"free_mib": None}, "disk", "unknown", "not measured", ""),
        (NANO, {"synchronised": False}, "time", "warning", "not synchronised", "timedatectl set-ntp true"),
    ],
)  # fmt: skip
def test_each_fault_in_the_system_gets_its_advice(name, change, finding, state, seen, advice):
    item = found(TREES / name, dataclasses.replace(GOOD, **change))[finding]
    assert item.state == state and seen in item.text and advice in item.advice


def test_a_copied_tree_tells_the_time_by_systemd_s_mark(tree):
    root = tree(AGX)
    assert found(root, Probe())["time"].state == "ok"
    (root / "run/systemd/timesync/synchronized").unlink()
    assert found(root, Probe())["time"].state == "warning"
    shutil.rmtree(root / "run")
    assert found(root, Probe())["time"].state == "unknown"


def test_an_unknown_module_gets_generic_values(tree):
    root = tree(NANO)
    (root / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson of Tomorrow\0\x1b[31m\0")
    (root / "proc/device-tree/compatible").write_bytes(b"nvidia,p9999-0000\0nvidia,tegra300\0")
    report = examine(root, GOOD)
    device = report.findings[0]
    assert device.state == "warning" and "\x1b" not in device.text
    assert device.text.startswith("NVIDIA Jetson of Tomorrow[31m: no table knows it, so generic values hold")
    assert report.device.rank_alignment == {"fp16": 8, "int8": 16} and "add a table" in device.advice
    assert not report.faulty


@pytest.mark.parametrize(
    ("card", "kind", "state"),
    [("NVIDIA GeForce RTX 4090", "pc", "ok"), ("NVIDIA H100 80GB HBM3", "generic", "warning")],
)
def test_a_computer_with_a_card_is_told_by_the_driver(card, kind, state, tmp_path):
    text = f"Model: \t\t {card}\nIRQ:   \t\t 144\nGPU UUID: \t GPU-01234567-89ab-cdef-0123-456789abcdef\n"
    write(tmp_path, "proc/driver/nvidia/gpus/0000:01:00.0/information", text)
    report = examine(tmp_path, GOOD)
    assert report.device.kind == kind and report.findings[0].state == state and card in report.findings[0].text
    assert "89ab" not in json.dumps(report.to_json())


@pytest.mark.parametrize(
    ("place", "encrypted"),
    [("var/lib/hscc edge/state", "ok"), ("srv/state", "warning"), ("var/lib/hscc/state", "warning")],
)
def test_encryption_is_seen_through_lvm(place, encrypted, tree):
    root = tree(AGX)
    (root / place).mkdir(parents=True, mode=0o700)
    assert found(root, state=root / place)["encryption"].state == encrypted


@pytest.mark.parametrize(("mode", "state"), [(0o700, "ok"), (0o750, "fault"), (0o707, "fault"), (0o500, "ok")])
def test_a_state_directory_that_others_may_enter_is_a_fault(mode, state, tree):
    root = tree(AGX)
    assert found(root, state=root / "state")["state directory"].text.startswith("not there yet")
    (root / "state").mkdir()
    (root / "state").chmod(mode)
    item = found(root, state=root / "state")["state directory"]
    assert item.state == state and ("chmod 0700" in item.advice) is (state == "fault")


def test_an_unclear_volume_is_not_called_encrypted(tree):
    root = tree(AGX)
    write(root, "proc/mounts", "overlay / overlay rw 0 0\n")
    item = found(root, state=root / "state")["encryption"]
    assert item.state == "unknown" and "(overlay)" in item.text
    write(root, "proc/mounts", "/dev/sda1 / ext4 rw 0 0\n/dev/mapper/vault / ext4 rw 0 0\n")
    assert found(root, state=root / "state")["encryption"].state == "ok", "the last of equals lies on top"


@pytest.mark.parametrize("name", [NANO, AGX, THOR, XAVIER])
def test_the_verb_shows_no_identifier(name, tree):
    root = tree(name)
    state = root / "var/lib/ward7-jetson"
    state.mkdir(parents=True, mode=0o755)
    for words in ((), ("--json",)):
        done = CliRunner().invoke(app, ["--root", str(root), "--state", str(state), *words])
        assert done.exit_code == 1 and "chmod 0700" in done.output
        assert not [word for word in IDENTIFIERS if word in done.output]


def test_the_verb_exits_by_its_faults_and_reads_the_state_from_a_configuration(tree):
    root = tree(AGX)
    config = 'state = "state"\n[[model]]\nbundle = "b"\n[[destination]]\nae_title = "A"\nhost = "h"\nport = 104\n'
    write(root, "serve.toml", config)
    words = ["--root", str(root), "--state", str(root / "serve.toml"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    shown = json.loads(done.output)
    assert shown["device"] == "Jetson AGX Orin" and shown["jetpack"] == "6.1" and shown["faulty"] is False
    assert "state directory" in [item["name"] for item in shown["findings"]]
    (root / "state").mkdir(mode=0o755)
    assert CliRunner().invoke(app, words).exit_code == 1
    outside = CliRunner().invoke(app, ["--root", str(root / "etc"), "--state", str(root / "state")])
    assert "does not lie below --root" in str(outside.exception)


def test_this_machine_is_no_jetson_and_nothing_is_left_unsaid():
    done = CliRunner().invoke(app, ["--json"])
    shown = json.loads(done.output)
    seen = {item["name"]: item for item in shown["findings"]}
    assert shown["l4t"] is None and "no Jetson" in seen["device"]["text"]
    assert {"memory", "disk", "time", "ONNX Runtime"} <= seen.keys() and "power mode" not in seen
    assert done.exit_code == int(shown["faulty"])
    providers = probe_system().providers
    assert providers is not None and "CPUExecutionProvider" in providers


def test_a_broken_package_says_why_and_no_path():
    lines = "Traceback ...\nImportError: libnvdla_compiler.so: cannot open shared object file: /home/ward7/x\n"
    assert failure_of(lines) == "libnvdla_compiler.so is missing"
    assert failure_of("ValueError: /home/ward7/venv") == "ValueError"
    assert failure_of("") == "it ended without a word"
    assert is_system("/usr/lib/python3.10/dist-packages/tensorrt/__init__.py")
    assert not is_system("/usr/local/lib/python3.10/dist-packages/tensorrt/__init__.py")
    assert not is_system("/opt/venv/lib/python3.10/site-packages/tensorrt/__init__.py")


def test_the_doctor_itself_imports_neither_torch_nor_a_runtime():
    code = (
        "import sys, hscc_edge.export.doctor, hscc_edge.export.doctor_probe as p; p.probe_system(); "
        "print(sorted({'torch', 'monai', 'onnxruntime', 'numpy', 'onnx', 'tensorrt'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
