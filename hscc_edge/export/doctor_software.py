"""Whether a machine's JetPack, TensorRT, ONNX Runtime and Python fit each other and this product."""

from __future__ import annotations

import re
from pathlib import Path

from hscc_edge.errors import EngineError
from hscc_edge.export.devices import Device, Machine, require_supported
from hscc_edge.export.doctor_finding import Finding
from hscc_edge.export.doctor_probe import Package, Probe

# The first TensorRT that comes to JetPack (from 7.2.2) by NVIDIA's package for Arm servers (SBSA): its release notes.
SBSA = (11, 4, 1)
ORIN = "8.7"
FROM_SYSTEM = (
    "uninstall pip's tensorrt packages, sudo apt install nvidia-jetpack, and make the virtual environment anew with "
    "python3 -m venv --system-site-packages"
)


def examine_jetpack(root: Path, machine: Machine | None, jetson: bool) -> list[Finding]:
    """Whether the JetPack is one that this product supports; nothing if the machine is no Jetson."""
    if not jetson:
        return []
    if machine is None:
        advice = "in a container, mount the host's file: -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro"
        return [Finding("JetPack", "unknown", "/etc/nv_tegra_release could not be read", advice)]
    release = f"L4T {machine.l4t[0]}.{machine.l4t[1]}.{machine.patch}"
    try:
        require_supported(machine)
    except EngineError as error:
        return [Finding("JetPack", "fault", release, str(error))]
    if machine.device is None or machine.jetpack is None:
        return [Finding("JetPack", "warning", f"{release}, which no table knows", "check TensorRT's version by hand")]
    device, name = machine.device, machine.jetpack
    brings = f"TensorRT {device.tensorrt[name]}, CUDA {device.cuda[name]}, Python {device.python[name]}"
    return [Finding("JetPack", "ok", f"{name} ({release}): {brings}")]


def examine_software(probe: Probe, device: Device, machine: Machine | None, jetson: bool) -> list[Finding]:
    """TensorRT, ONNX Runtime, Python and torch as found by `probe`; nothing if it was not asked."""
    if not probe.asked:
        return [Finding("software", "unknown", "not looked at: the files are not those of the running system")]
    jetpack = None if machine is None else machine.jetpack
    findings = [_onnxruntime(probe, jetson)]
    if jetson:
        findings += [_tensorrt(probe.tensorrt, device, jetpack), _python(probe, device, jetpack), _torch(probe)]
    elif probe.tensorrt is not None and probe.tensorrt.error:
        advice = 'reinstall TensorRT, or serve with runtime = "ort"'
        findings.append(Finding("TensorRT", "warning", f"cannot be imported: {probe.tensorrt.error}", advice))
    elif probe.tensorrt is not None:
        findings.append(Finding("TensorRT", "ok", probe.tensorrt.version))
    return findings


def _tensorrt(package: Package | None, device: Device, jetpack: str | None) -> Finding:
    if package is None:
        text = 'this Python has none: only runtime = "ort" will serve'
        return Finding("TensorRT", "warning", text, FROM_SYSTEM)
    version = package.version or "unknown version"
    if not package.system and not _runs_from_pip(package, device, jetpack):
        text = f"{version} is a wheel from pip, which has no kernels for this GPU (SM {device.compute_capability})"
        return Finding("TensorRT", "fault", text, FROM_SYSTEM)
    if package.error:
        return Finding("TensorRT", "fault", f"cannot be imported: {package.error}", _import_advice(package.error))
    expected = device.tensorrt.get(jetpack or "")
    if expected is not None and not _is_release(package.version, expected) and _number(version) < SBSA:
        text = f"{version}, but JetPack {jetpack} brings {expected}"
        return Finding("TensorRT", "warning", text, FROM_SYSTEM)
    return Finding("TensorRT", "ok", version if package.system else f"{version}, from pip")


def _runs_from_pip(package: Package, device: Device, jetpack: str | None) -> bool:
    """Orin's SM 8.7 is in no wheel before 11.4.1, and that needs JetPack 7.2; other Jetsons' GPUs are in wheels."""
    if device.compute_capability != ORIN:
        return True
    return _number(package.version) >= SBSA and _number(jetpack or "") >= (7, 2)


def _import_advice(error: str) -> str:
    if "nvdla" in error:
        return "mount the host's libnvdla_compiler.so into the container, or install nvidia-l4t-dla-compiler on it"
    return "in a container start it with --runtime nvidia; else sudo apt install --reinstall nvidia-jetpack"


def _is_release(version: str, expected: str) -> bool:
    return version == expected or version.startswith(expected + ".")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _onnxruntime(probe: Probe, jetson: bool) -> Finding:
    if probe.providers is None:
        advice = "pip install 'hscc_edge[device]'"
        return Finding("ONNX Runtime", "warning", 'cannot be imported: runtime = "ort" will not serve', advice)
    local = [name for name in probe.providers if name != "AzureExecutionProvider"]  # it calls a cloud, computes nothing
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in local)
    if jetson and local == ["CPUExecutionProvider"]:
        names += ' alone: use runtime = "trt" for the GPU'
    return Finding("ONNX Runtime", "ok", names)


def _python(probe: Probe, device: Device, jetpack: str | None) -> Finding:
    own = ".".join(str(part) for part in probe.python or ())
    expected = device.python.get(jetpack or "")
    if expected is None or own == expected:
        return Finding("Python", "ok", own)
    text = f"{own}, but JetPack {jetpack} has its TensorRT for {expected}"
    return Finding("Python", "warning", text, f"make the virtual environment with python{expected}")


def _torch(probe: Probe) -> Finding:
    if not probe.torch:
        return Finding("torch", "ok", "not installed, and not needed here")
    advice = "install hscc_edge[device] alone in the service's environment: torch takes memory and brings its own CUDA"
    return Finding("torch", "warning", "installed, though nothing here needs it", advice)
