"""What stands beside figures names the packages that were there."""

from hscc_edge.validate.machine import machine_facts


def test_a_build_of_onnx_runtime_for_gpus_is_named(tmp_path, monkeypatch):
    info = tmp_path / "onnxruntime_gpu-9.8.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 9.8.7\n")
    (info / "top_level.txt").write_text("onnxruntime\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    versions = machine_facts()["versions"]
    assert versions["onnxruntime-gpu"] == "9.8.7" and set(versions) > {"hscc-edge", "numpy", "pydicom"}
