"""What is deployed: the unit's exposure and that systemd takes it, manifests by Kubernetes' own schemas, one
configuration that the daemon's reader takes."""

import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from hscc_edge.serve.config_file import read_config

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "hscc-edge.service"
MOST_EXPOSURE = 1.2
GPU_EXPOSURE = 1.4


def exposure(path: Path) -> float:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)], capture_output=True, text=True
    )
    return float(re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)[1])


def test_the_unit_exposes_no_more_than_the_documentation_says():
    stated = re.search(r"systemd-analyze security` gives it ([\d.]+)", (ROOT / "docs" / "operations.md").read_text())
    assert exposure(UNIT) == float(stated[1]) == MOST_EXPOSURE


def test_with_a_gpu_a_little_more(tmp_path):
    merged = tmp_path / "hscc-edge.service"
    more = (DEPLOY / "systemd" / "gpu.conf").read_text()
    merged.write_text(UNIT.read_text().replace("[Install]", more + "\n[Install]"))
    assert exposure(merged) == GPU_EXPOSURE


def test_systemd_takes_the_unit(tmp_path):
    program = tmp_path / "hscc-edge"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "hscc-edge.service"
    unit.write_text(UNIT.read_text().replace("/opt/hscc-edge/bin/hscc-edge", str(program)))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "hscc-edge" in line]
    assert done.returncode == 0 and said == []


def test_the_unit_and_the_daemon_agree():
    text = UNIT.read_text()
    from hscc_edge.serve.operations.health import HEARTBEAT_S
    from hscc_edge.serve.supervisor import DRAIN_S

    watchdog, stop = (int(re.search(rf"{name}=(\d+)", text)[1]) for name in ("WatchdogSec", "TimeoutStopSec"))
    assert watchdog > 3 * HEARTBEAT_S and stop > DRAIN_S and "Type=notify\n" in text


def manifests() -> list[tuple[str, dict]]:
    files = [path for path in (DEPLOY / "k3s").glob("*.yaml") if path.name != "kustomization.yaml"]
    return [(path.name, item) for path in sorted(files) for item in yaml.safe_load_all(path.read_text())]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
@pytest.mark.parametrize(("name", "manifest"), manifests(), ids=lambda item: item if isinstance(item, str) else "")
def test_manifests_are_kubernetes(name, manifest, version):
    kubernetes_validate.validate(manifest, version, strict=True)


def test_manifests_belong_together():
    kustomization = yaml.safe_load((DEPLOY / "k3s" / "kustomization.yaml").read_text())
    assert set(kustomization["resources"]) == {name for name, _ in manifests()}
    found = {(item["kind"], item["metadata"]["name"]): item for _, item in manifests()}
    pod = found["Deployment", "hscc-edge"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert all(("PersistentVolumeClaim", claim) in found for claim in claims)
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] and pod["securityContext"]["runAsNonRoot"]
    generated = [item["name"] for item in kustomization["configMapGenerator"]]
    assert [v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v] == generated
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    config = read_config(DEPLOY / "k3s" / "serve.toml")
    assert ports == {"dicom": config.dicom.port, "web": config.web.port}
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert str(config.state.parent) in mounts and str(config.dicom.tls.certificate.parent) in mounts


def test_compose_is_closed_and_keeps_its_state():
    found = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    serve = found["services"]["serve"]
    assert serve["read_only"] and serve["cap_drop"] == ["ALL"] and serve["restart"] == "unless-stopped"
    assert "no-new-privileges:true" in serve["security_opt"] and serve["user"] == "10001:10001"
    assert (
        any(volume == "state:/var/lib/hscc-edge/state" for volume in serve["volumes"]) and "state" in found["volumes"]
    )
    assert serve["healthcheck"]["test"][-1] == "--health"
    docker = (ROOT / "Dockerfile.jetson").read_text()
    assert "USER 10001" in docker and 'VOLUME ["/var/lib/hscc-edge/state"]' in docker
    more = yaml.safe_load((DEPLOY / "compose" / "gpu.yaml").read_text())["services"]
    assert more.keys() == found["services"].keys()


def test_logrotate_s_file_names_what_the_documentation_names():
    text = (DEPLOY / "systemd" / "hscc-edge.logrotate").read_text()
    assert "nocreate" in text and "/var/log/hscc-edge/*.log {" in text and text.count("{") == text.count("}") == 1


def test_the_example_is_read(tmp_path):
    path = tmp_path / "serve.toml"
    path.write_text((DEPLOY / "serve.example.toml").read_text())
    assert read_config(path).dicom.port == 11112


def test_the_conformance_statement_s_tables_are_the_code_s():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "conformance.py"), "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
