"""Telemetry on trees of sysfs files (published ones, tests/export/trees, and made ones): nothing is guessed."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hscc_edge.validate import telemetry
from hscc_edge.validate.energy import has_power, measure_energy
from hscc_edge.validate.telemetry import Reading, Sensor, find_sensors, read, recorded, summarise

TREES = Path(__file__).parent.parent / "export" / "trees"


def write(path: Path, text: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
    return path


@pytest.mark.parametrize(
    ("tree", "mode", "watts", "hottest", "gpu_mhz", "of"),
    [
        ("orin-nano-jetpack-6.2", "15W", {"VDD_IN": 4.832, "VDD_CPU_GPU_CV": 1.237, "VDD_SOC": 1.435}, "tj-thermal",
         306.0, "the module, by its input rail VDD_IN"),
        ("agx-orin-jetpack-6.1", "MAXN", {"VDD_GPU_SOC": 5.139, "VDD_CPU_CV": 3.27, "VIN_SYS_5V0": 5.5}, "cpu-thermal",
         1300.5, "the sum of the rails VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0"),
        ("thor-jetpack-7.0", "120W", {"VDD_GPU": 5.52, "VDD_CPU_SOC_MSS": 6.24, "VIN_SYS_5V0": 4.15}, "tj-thermal",
         1575.0, "the sum of the rails VDD_GPU, VDD_CPU_SOC_MSS, VIN_SYS_5V0"),
    ],
)  # fmt: skip
def test_a_jetson_s_tree(tree, mode, watts, hottest, gpu_mhz, of):
    sensors = find_sensors(TREES / tree)
    readings = [read(sensors), read(sensors)]
    found = summarise(sensors, readings)
    assert telemetry.settings(TREES / tree)["power_mode"] == mode
    assert {rail: round(value, 3) for rail, value in found.watts.items()} == watts
    assert max(found.celsius, key=lambda zone: found.celsius[zone][2]) == hottest
    assert gpu_mhz in {mean for _, mean, _ in found.megahertz.values()}
    assert found.energy_of.startswith(of) and set(found.joules) == set(watts)
    assert found.not_measured == ("energy counters (RAPL)", "throttling")
    whole = watts["VDD_IN"] if "VDD_IN" in watts else sum(watts.values())
    assert found.energy_j == pytest.approx(whole * found.seconds, rel=1e-3)


def test_a_zone_that_is_switched_off_is_no_temperature():
    names = {sensor.name for sensor in find_sensors(TREES / "orin-nano-jetpack-6.2") if sensor.kind == "celsius"}
    assert "cv0-thermal" not in names and "tj-thermal" in names


def test_a_machine_without_sensors_measures_nothing(tmp_path):
    assert find_sensors(tmp_path) == () and not has_power(())
    with recorded(()) as readings:
        pass
    found = summarise((), readings)
    assert found.energy_j is None and found.energy_of == "not measured"
    assert found.not_measured == tuple(telemetry.KINDS.values())
    assert set(telemetry.settings(tmp_path).values()) == {"not measured"}


@given(st.lists(st.floats(0.0, 50.0), min_size=2, max_size=20), st.floats(0.01, 3.0))
@settings(deadline=None)
def test_energy_is_the_integral_of_power(watts, step_s):
    sensor = Sensor("watts", "VDD_IN", (), 1.0)
    readings = [Reading(step_s * index, (value,)) for index, value in enumerate(watts)]
    found = summarise((sensor,), readings)
    expected = step_s * (sum(watts) - (watts[0] + watts[-1]) / 2)
    assert found.energy_j == pytest.approx(expected, abs=1e-9)
    assert min(watts) - 1e-9 <= found.watts["VDD_IN"] <= max(watts) + 1e-9


def test_a_reading_that_fails_leaves_a_gap_and_no_zero():
    sensor = Sensor("watts", "VDD_IN", (), 1.0)
    found = summarise((sensor,), [Reading(0.0, (10.0,)), Reading(1.0, (None,)), Reading(2.0, (10.0,))])
    assert found.energy_j == pytest.approx(20.0)


def rapl(root: Path, microjoules: int) -> None:
    zone = root / "sys/class/powercap/intel-rapl:0"
    for name, value in (("name", "package-0"), ("energy_uj", microjoules), ("max_energy_range_uj", 1_000_000)):
        write(zone / name, value)
    for name, value in (("name", "core"), ("energy_uj", 1), ("max_energy_range_uj", 1_000_000)):
        write(root / "sys/class/powercap/intel-rapl:0:0" / name, value)


def test_rapl_s_counter_begins_anew_and_its_parts_do_not_count_twice(tmp_path):
    readings = []
    for value in (900_000, 950_000, 20_000, 120_000):
        rapl(tmp_path, value)
        readings.append(read(find_sensors(tmp_path)))
    found = summarise(find_sensors(tmp_path), readings)
    assert found.joules == {"package-0": pytest.approx(0.22)} and found.energy_j == pytest.approx(0.22)
    assert "processor alone" in found.energy_of


def test_throttling_is_what_rose(tmp_path):
    counters = [
        write(tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", 5),
        write(tmp_path / "sys/class/hwmon/hwmon3/oc1_event_cnt", 2),
    ]
    sensors = find_sensors(tmp_path)
    before = read(sensors)
    write(counters[1], 4)
    found = summarise(sensors, [before, read(sensors)])
    assert found.events == {"over-current, oc1": 2.0} and "throttling" not in found.not_measured


def test_an_alert_that_is_on_throttles_though_it_did_not_rise(tmp_path):
    """A state, not a counter: `cooling_device*/cur_state` of Jetson Linux's alerts; a fan's is none."""
    for number, (name, state) in enumerate([("gpu-throttle-alert", 1), ("cpu-throttle-alert", 0), ("pwm-fan", 3)]):
        write(tmp_path / f"sys/class/thermal/cooling_device{number}/type", name)
        write(tmp_path / f"sys/class/thermal/cooling_device{number}/cur_state", state)
    sensors = find_sensors(tmp_path)
    found = summarise(sensors, [read(sensors), read(sensors)])
    assert found.events == {"alert, gpu": 1.0} and telemetry.throttled([found, found]) == ("alert, gpu: 1",)
    write(tmp_path / "sys/class/thermal/cooling_device0/cur_state", 0)
    calm = summarise(sensors, [read(sensors), read(sensors)])
    assert telemetry.throttled([calm]) == () and telemetry.throttled([calm, found]) == ("alert, gpu: 1",)


def test_readings_go_on_while_something_else_runs(tmp_path):
    write(tmp_path / "sys/class/thermal/thermal_zone0/temp", 41_000)
    sensors = find_sensors(tmp_path)
    with recorded(sensors, 0.01) as readings:
        while len(readings) < 4:
            time.sleep(0.01)
    found = summarise(sensors, readings)
    assert found.readings >= 5 and found.celsius == {"thermal_zone0": (41.0, 41.0, 41.0)}


def test_energy_an_image_is_told_from_the_idle_device(tmp_path):
    """The drawn power is a file that the one network sets to 12 W and the other to 6 W; the idle device draws 4 W."""
    hwmon = tmp_path / "sys/class/hwmon/hwmon0"
    for name, text in (("name", "ina3221"), ("in1_label", "VDD_IN"), ("in1_input", 1000), ("curr1_input", 4000)):
        write(hwmon / name, text)

    class Drawing:
        def __init__(self, name, milliamperes):
            self.name, self.milliamperes = name, milliamperes

        def infer(self, images):
            draft = write(hwmon / "draft", self.milliamperes)
            draft.replace(hwmon / "curr1_input")
            time.sleep(0.005)
            return images

        def close(self):
            """Nothing to close."""

    networks = [Drawing("dense", 12_000), Drawing("small", 6_000)]
    first, second = measure_energy(
        networks, [np.zeros((1, 2, 2), np.float32)], 1.0, find_sensors(tmp_path), idle_s=0.05
    )
    assert first.idle_watts == pytest.approx(4.0) and first.of == "the module, by its input rail VDD_IN"
    assert second.watts < first.watts <= 12.0 and first.images > 0
    for found in (first, second):
        assert found.joules_an_image == pytest.approx(found.watts * found.seconds / found.images)
        assert found.above_idle_joules < found.joules_an_image
