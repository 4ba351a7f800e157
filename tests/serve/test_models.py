"""Installed, tested, switched, gone back from: what is served, and that no study is lost or reported twice by it."""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from workbench import Bench, less_sure, slices

from hscc_edge.bundle import Bundle, add_files, read_bundle, rewrite
from hscc_edge.errors import BundleError, ConfigError, EngineError, InputError
from hscc_edge.export.reference import REFERENCE, reference_file
from hscc_edge.serve.audit import read as read_audit
from hscc_edge.serve.config import Route, ServedModel
from hscc_edge.serve.instances import REPORTED
from hscc_edge.serve.worker import models
from hscc_edge.serve.worker.work import ready
from hscc_edge.validate.pack.signature import sign

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def newer(dense, tmp_path_factory) -> Bundle:
    return less_sure(dense, tmp_path_factory.mktemp("newer") / "bundle")


def states(made: Bench) -> dict[int, tuple[str, str | None]]:
    return {model.version: (model.state, model.reason) for model in models.models(made.journal)}


def install(made: Bench, bundle: Bundle) -> models.Model:
    return models.install(made.station, made.journal, bundle.root)


def reports(made: Bench, study: str) -> list[tuple[str, int]]:
    return made.journal.read("SELECT digest, current FROM reports WHERE study = ? ORDER BY id", (study,))


def test_the_first_bundle_is_installed_and_active_at_start(bench, dense):
    made = bench()
    (model,) = models.models(made.journal)
    first = read_bundle(dense)
    assert (model.name, model.digest, model.state) == ("tiny", first.digest, models.ACTIVE)
    assert models.load(made.station, model).files == first.files
    assert (made.station.config.state / "models").stat().st_mode & 0o777 == 0o700


def test_a_switch_comes_between_studies_and_a_late_slice_supersedes(bench, phantom, dense, newer):
    made = bench()
    old = read_bundle(dense)
    one = made.put(slices(phantom, "1", 2))
    made.work()
    before = models.generation(made.journal)
    models.activate(made.journal, install(made, newer).digest)
    assert models.generation(made.journal) > before
    made.worker.refresh()
    made.put(slices(phantom, "1", 3)[2:])
    two = made.put(slices(phantom, "2", 3, 3))
    made.work()
    assert reports(made, one) == [(old.digest, 0), (newer.digest, 1)]
    assert reports(made, two) == [(newer.digest, 1)]
    assert list(states(made).values()) == [(models.RETIRED, None), (models.ACTIVE, None)]
    events = made.journal.read("SELECT kind FROM events WHERE study IS NULL")
    assert events == [("activated",), ("activated",)]


def test_only_a_roll_back_goes_back(bench, dense, newer):
    made = bench()
    first = models.models(made.journal)[0]
    second = install(made, newer)
    models.activate(made.journal, second.digest)
    with pytest.raises(InputError, match="go back with hscc-edge models rollback"):
        models.activate(made.journal, first.digest)
    assert models.roll_back(made.journal, "tiny", "tried").digest == first.digest
    assert states(made) == {first.version: (models.ACTIVE, None), second.version: (models.WITHDRAWN, "tried")}
    assert models.roll_back(made.journal, "tiny", "again") is None
    assert models.activate(made.journal, second.digest[:16]).state == models.ACTIVE


def test_an_older_version_of_other_content_is_refused(bench, newer, dense, tmp_path):
    made = bench()
    install(made, newer)
    shutil.copytree(dense, tmp_path / "other")
    other = add_files(read_bundle(tmp_path / "other"), {"reports/note.txt": b"changed"})
    with pytest.raises(BundleError, match="give it a higher version"):
        install(made, other)


def broken(dense, tmp_path, content: bytes | None) -> Bundle:
    """A later version whose reference set is another, or is not there."""
    shutil.copytree(dense, tmp_path / "broken")
    found = rewrite(read_bundle(tmp_path / "broken"), {REFERENCE: content or b""})
    if content is None:
        files = {name: digest for name, digest in found.files.items() if name != REFERENCE}
        found = add_files(replace(found, files=files), {})
    return found


def test_what_fails_its_self_test_or_has_none_is_not_installed(bench, dense, tmp_path):
    made = bench()
    spec = read_bundle(dense).spec
    inputs = np.zeros((1, *spec.input_shape), np.float32)
    wrong = reference_file(inputs, {"fp32": np.full((1, len(spec.labels)), 50.0, np.float32)})
    with pytest.raises(EngineError, match="the self-test failed: a logit of the reference set is off by"):
        install(made, broken(dense, tmp_path, wrong))
    shutil.rmtree(tmp_path / "broken")
    with pytest.raises(BundleError, match="run hscc-edge export again"):
        install(made, broken(dense, tmp_path, None))
    assert len(models.models(made.journal)) == len(list((made.station.config.state / "models").iterdir())) == 1


def test_a_model_that_fails_on_this_device_gives_way_to_the_one_before(bench, phantom, newer):
    made = bench(deeds={newer.digest: lambda logits: logits + np.float32(100)})
    models.activate(made.journal, install(made, newer).digest)
    made.worker.refresh()
    assert states(made)[newer.spec.version] == (models.WITHDRAWN, "the self-test failed")
    uid = made.put(slices(phantom, "1", 3))
    made.work()
    assert made.states(uid) == [(REPORTED, None)] * 3
    assert reports(made, uid)[0][0] == models.find(made.journal, "tiny", models.ACTIVE).digest != newer.digest


def test_a_damaged_copy_gives_way_when_the_daemon_starts(bench, dense, newer):
    made = bench()
    model = models.activate(made.journal, install(made, newer).digest)
    (made.station.config.state / model.folder / "models" / "model.onnx").write_bytes(b"nothing")
    (bundle,) = ready(made.station, made.journal)
    assert bundle.digest == read_bundle(dense).digest
    assert states(made)[newer.spec.version] == (models.WITHDRAWN, "the self-test failed")
    (line,) = read_audit(made.station.config.state, made.station.key)
    assert (line.action, line.facts["reason"]) == ("model-rollback", "the self-test failed")


class Worn:
    """Does well on the reference set, and fails on whatever comes later."""

    def __init__(self, well: int = 4) -> None:
        self.well = well

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        self.well -= 1
        if self.well < 0:
            raise EngineError("out of order")
        return logits


def test_too_many_failures_bring_back_the_model_before_and_the_studies_it_failed_on(bench, phantom, newer):
    made = bench(deeds={newer.digest: Worn()}, batch=4)
    models.activate(made.journal, install(made, newer).digest)
    made.worker.refresh()
    uids = [made.put(slices(phantom, str(number), 2, 2 * number)) for number in range(20)]
    made.work()
    assert states(made)[newer.spec.version] == (models.WITHDRAWN, "20 of the last 20 studies failed")
    assert [event.kind for event in made.world()] == ["activated", "activated", "rolled-back"]
    assert "no-result" in made.kinds(uids[0]) and made.kinds(uids[0])[-1] == "reported"
    assert all(made.states(uid) == [(REPORTED, None)] * 2 for uid in uids)
    assert not made.journal.read("SELECT 1 FROM reports WHERE digest = ?", (newer.digest,))


def test_two_models_side_by_side_make_a_report_each_where_routes_say_so(bench, phantom, dense, newer):
    made = bench(
        model=(ServedModel(dense, "first"), ServedModel(newer.root, "second")),
        route=(Route({"BodyPartExamined": ("KNEE",)}, ("second",)), Route({"Modality": ("MR",)})),
        batch=4,
    )
    both = made.put(slices(phantom, "1", 3, BodyPartExamined="HEAD"))
    only = made.put(slices(phantom, "2", 3, 3, BodyPartExamined="KNEE"))
    mixed = made.put(
        slices(phantom, "3", 2, 6) + slices(phantom, "3", 3, 6, BodyPartExamined="ELBOW", Modality="CT")[2:]
    )
    made.work()
    found = made.journal.read("SELECT study, model FROM reports WHERE current = 1")
    assert set(found) == {
        (both, "first"), (both, "second"), (only, "second"), (mixed, "first"), (mixed, "second"),
    }  # fmt: skip
    assert made.states(mixed) == [(REPORTED, None)] * 2 + [("no-result", "out of scope: no route matches")]


def test_models_of_one_name_and_routes_to_none_are_told(tmp_path, dense, newer):
    with pytest.raises(ConfigError, match="two models are named"):
        Bench(tmp_path / "a", dense, model=(ServedModel(dense), ServedModel(newer.root)))
    with pytest.raises(ConfigError, match="a route names the model 'brain': expected one of tiny"):
        Bench(tmp_path / "b", dense, route=(Route(models=("brain",)),))


@pytest.mark.skipif(os.getuid() != 0, reason="trusted keys belong to root")
def test_with_trusted_keys_only_signed_bundles_are_served(bench, dense, newer, tmp_path):
    keys, key = tmp_path / "keys", Ed25519PrivateKey.generate()
    keys.mkdir()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (keys / "maker.pem").write_bytes(pem)
    os.chmod(keys, 0o755)
    os.chmod(keys / "maker.pem", 0o644)
    with pytest.raises(BundleError, match="is not signed by a trusted key"):
        bench(trusted_keys=keys)
    signed = tmp_path / "signed"
    shutil.copytree(newer.root, signed)
    sign(signed, key, "Maker", "approved", "2026-11-26T00:00:00Z")
    made = bench(trusted_keys=keys, model=(ServedModel(signed, "tiny"),))
    (model,) = models.models(made.journal)
    (made.station.config.state / model.folder / "signatures").rename(tmp_path / "gone")
    with pytest.raises(BundleError, match="is not signed by a trusted key"):
        models.load(made.station, model)


def test_an_install_waits_for_another(bench, newer, monkeypatch):
    made, copy = bench(), shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", lambda *paths: (time.sleep(0.05), copy(*paths)))

    def once() -> models.Model:
        journal = made.station.journal()
        try:
            return models.install(made.station, journal, newer.root)
        finally:
            journal.close()

    with ThreadPoolExecutor(2) as both:
        first, second = (future.result(60) for future in [both.submit(once) for _ in range(2)])
    assert first.digest == second.digest == newer.digest
    assert [model.digest for model in models.models(made.journal)].count(newer.digest) == 1


def test_what_an_install_that_was_killed_left_is_swept_and_a_damaged_copy_is_made_anew(bench, newer):
    made = bench()
    folder = made.station.config.state / "models"
    (folder / ".stray").mkdir()
    (folder / newer.digest).mkdir()
    (folder / newer.digest / "manifest.json").write_text("{")
    model = install(made, newer)
    assert models.load(made.station, model).digest == newer.digest and not (folder / ".stray").exists()
