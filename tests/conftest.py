"""What several tests share: a small phantom, and a small exported bundle."""

from pathlib import Path

import pytest
from small_model import recipe as small_recipe
from small_model import trained
from sshd import running, station  # noqa: F401

from hscc_edge.data.cohort import Cohort, read_cohort
from hscc_edge.data.phantom import write_phantom

# The files that take longest, begun first: tests are shared out by file, and a long one begun last is waited for.
LONGEST = (
    "test_networks.py", "test_sweep.py", "test_pages.py", "test_kill.py", "test_contract.py", "test_remote.py",
    "test_distill.py", "test_delivery.py", "test_faults.py", "test_extras.py", "test_gate.py",
    "test_whole_networks.py", "test_packaging.py", "test_volumes.py", "test_sinks.py", "test_latency.py",
    "test_verbs.py",
)  # fmt: skip

# What `make test` leaves to `make test-all`, so that it ends in a quarter of an hour on two slow cores.
LONG = (
    "test_networks.py::test_contract[Swin]", "test_networks.py::test_contract[EfficientNet-B0]",
    "test_networks.py::test_contract[VGG16]", "test_networks.py::test_contract[ResNet of basic blocks]",
    "test_networks.py::test_contract[SEResNet]", "test_networks.py::test_contract[3-D ResNet]",
    "test_networks.py::test_contract[ResNet of bottlenecks]", "test_networks.py::test_contract[ViT]",
    "test_distill.py::", "compress/test_contract.py::test_a_plan_is_applied_again_and_edited",
    "compress/test_contract.py::test_moves_never_end_worse", "compress/test_calibration.py::test_a_chosen_file",
    "compress/test_contract.py::test_a_contract_ends_in_a_bundle_or_a_gate", "cli/test_volumes.py::",
    "export/test_remote.py::test_a_verb_s_own_message", "export/test_remote.py::test_what_goes_wrong_there",
    "test_faults.py::test_an_archive_in_any_mood", "test_packaging.py::test_every_device_dependency_has_a_wheel",
    "test_extras.py::test_a_verb_without_its_extra", "test_onnx_dropin.py::test_sizes_that_vary",
    "data/test_shortcut.py::test_noise_is_no_evidence", "data/test_leakage.py::test_near_duplicates_across_splits",
    "cli/test_import.py::test_a_keras_style_model_all_the_way", "test_finetune.py::",
)  # fmt: skip
LONG_FIXTURES = {"swept"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the rest as they were; what takes longest is marked."""
    rank = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))
    for item in items:
        if any(name in item.nodeid for name in LONG) or LONG_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """40 patients x 3 slices of 64 x 64."""
    root = tmp_path_factory.mktemp("phantom") / "cohort"
    write_phantom(root, patients=40, slices=3, size=64, seed=5)
    return read_cohort(root)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training recipe that takes seconds."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(small_recipe())
    return path


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory, phantom: Cohort, recipe: Path) -> Path:
    """A trained and exported bundle. Treat it as read-only."""
    return trained(recipe, phantom.root, tmp_path_factory.mktemp("dense") / "bundle", "--images", "4")
