"""What the adapter calls exists in TensorRT 10.3 and 11.4, by listings of their compiled modules; nothing is run."""

import ast
import json
from pathlib import Path

import pytest

from hscc_edge.export import builder, engine, refit
from hscc_edge.runtime import nvidia
from hscc_edge.runtime import trt as runtime

MODULES = (builder, engine, refit, nvidia, runtime)
LISTINGS = sorted((Path(__file__).parent / "api").glob("tensorrt-*.json"))
OWNERS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "layer": "ILayer",
    "config": "IBuilderConfig", "profile": "IOptimizationProfile", "self._engine": "ICudaEngine",
    "context": "IExecutionContext", "lane.context": "IExecutionContext", "self._loader": "Runtime", "loader": "Runtime",
    "refitter": "Refitter", "weights": "OnnxParserRefitter",
}  # fmt: skip
# Reached only after getattr has found `ComputeCapability` or `num_compute_capabilities`.
RTX_ONLY = {"num_compute_capabilities", "set_compute_capability", "get_compute_capability"}


def chains(path):
    """Every dotted attribute chain of a file, as written, with its parts."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and "(" not in ast.unparse(node):
            yield ast.unparse(node)


def owned(chain):
    return next((name for name in OWNERS if chain.startswith(f"{name}.")), None)


ALL_CHAINS = sorted({chain for module in MODULES for chain in chains(Path(module.__file__))})


@pytest.mark.parametrize("listing", LISTINGS, ids=lambda path: path.stem)
def test_every_name_is_in_the_listing(listing):
    api = json.loads(listing.read_text())
    checked = 0
    for chain in ALL_CHAINS:
        if chain.startswith("trt."):
            first, *rest = chain.split(".")[1:]
            if first.startswith("__"):
                continue
            assert first in api["classes"], f"{chain} is not in TensorRT {api['version']}"
            kind = first
        else:
            owner = owned(chain)
            if owner is None:
                continue
            kind, rest = OWNERS[owner], chain.removeprefix(f"{owner}.").split(".")
        if rest and rest[0] not in {*RTX_ONLY, "__init__"} and kind in api["members"]:
            assert rest[0] in api["members"][kind], f"{chain} is not in TensorRT {api['version']}"
        checked += 1
    assert checked > 30


def test_every_owner_is_met():
    assert {owned(chain) for chain in ALL_CHAINS} - {None} == set(OWNERS)


def test_two_majors_are_listed():
    assert [json.loads(path.read_text())["version"].split(".")[0] for path in LISTINGS] == ["10", "11"]
