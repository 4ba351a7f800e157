"""What the adapter and the runtime call, held to the real `tensorrt_rtx` and cuda-python, by name and by arguments."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from cuda.bindings import runtime as cudart

from hscc_edge.export import builder, engine, refit
from hscc_edge.runtime import nvidia
from hscc_edge.runtime import trt as runtime
from hscc_edge.runtime.nvidia import load_tensorrt

trt = load_tensorrt()
MODULES = (builder, engine, refit, nvidia, runtime)
OPTIONAL = {"ComputeCapability", "STRONGLY_TYPED", "EXPLICIT_BATCH"}
OWNERS = {
    "trt": trt, "builder": trt.Builder, "network": trt.INetworkDefinition, "parser": trt.OnnxParser,
    "layer": trt.ILayer, "config": trt.IBuilderConfig, "profile": trt.IOptimizationProfile,
    "self._engine": trt.ICudaEngine, "lane.context": trt.IExecutionContext, "context": trt.IExecutionContext,
    "self._loader": trt.Runtime, "loader": trt.Runtime,
    "refitter": trt.Refitter, "weights": trt.OnnxParserRefitter,
    "cudart": cudart, "self._cuda": cudart, "properties": cudart.cudaDeviceProp,
    "kinds": cudart.cudaMemcpyKind,
}  # fmt: skip
TREES = [ast.parse(Path(module.__file__).read_text()) for module in MODULES]
NODES = [node for tree in TREES for node in ast.walk(tree)]
CALLS = [node for node in NODES if isinstance(node, ast.Call)]


def chains() -> set[str]:
    """Every dotted attribute chain, as written."""
    written = (ast.unparse(node) for node in NODES if isinstance(node, ast.Attribute))
    return {chain for chain in written if "(" not in chain}


def test_every_name_that_is_called_exists():
    """Names are read from the source; those that only some versions have are reached by getattr alone."""
    met = set()
    for chain in sorted(chains()):
        owner = next((name for name in OWNERS if chain.startswith(f"{name}.")), None)
        if owner is None:
            continue
        place = OWNERS[owner]
        for part in chain.removeprefix(f"{owner}.").split("."):
            if part in {"decode", "__name__", "__version__"}:
                break
            assert part not in OPTIONAL, f"{chain} exists in some versions only: reach it by getattr"
            assert hasattr(place, part), f"{chain}: there is no {part}"
            place = getattr(place, part)
        met.add(owner)
    assert met == set(OWNERS)


def cuda_calls() -> list[tuple[str, int]]:
    """Names and numbers of arguments: `cudart.f(...)`, `self._cuda.f(...)`, and `self._call("f", ...)`."""
    found = []
    for call in CALLS:
        written = ast.unparse(call.func)
        if written == "self._call":
            found.append((ast.literal_eval(call.args[0]), len(call.args) - 1))
        elif re.fullmatch(r"(cudart|self\._cuda)\.cuda\w+", written):
            found.append((written.rpartition(".")[2], len(call.args)))
        elif written.endswith("held.callback"):
            found.append((ast.unparse(call.args[0]).rpartition(".")[2], len(call.args) - 1))
    return found


@pytest.mark.parametrize(("name", "count"), sorted(set(cuda_calls())))
def test_cuda_takes_what_it_is_given(name, count):
    """cuda-python says a function's arguments in the first line of its docstring."""
    first = (getattr(cudart, name).__doc__ or "").splitlines()[0]
    match = re.fullmatch(rf"{name}\((.*)\)( -> .*)?", first)
    assert match, first
    assert len([part for part in match[1].split(",") if part.strip()]) == count, first


def test_no_cuda_call_is_missed():
    names = {name for name, _ in cuda_calls()}
    assert names >= {"cudaMallocHost", "cudaFreeHost", "cudaGraphLaunch", "cudaStreamEndCapture", "cudaMemcpyAsync"}
    assert len(names) > 15


def signatures(owner: str, method: str) -> list[int]:
    """How many arguments pybind11 says that each overload takes, those with a default left out."""
    text = getattr(OWNERS[owner], method).__doc__ or ""
    found = re.findall(rf"^(?:\d+\. )?{method}\(self: [^,)]*(?:, )?(.*)\) -> ", text, re.MULTILINE)
    return [len([part for part in re.findall(r"\w+: [^=,]+(=)?", arguments) if part != "="]) for arguments in found]


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        ("self._engine", "get_tensor_profile_shape"),
        ("self._engine", "get_tensor_dtype"),
        ("self._engine", "get_tensor_shape"),
        ("lane.context", "execute_async_v3"),
        ("context", "set_input_shape"),
        ("context", "set_tensor_address"),
        ("loader", "deserialize_cuda_engine"),
        ("weights", "refit_from_bytes"),
        ("refitter", "refit_cuda_engine"),
    ],
)
def test_tensorrt_takes_what_it_is_given(owner, method):
    calls = [call for call in CALLS if ast.unparse(call.func) == f"{owner}.{method}"]
    assert calls and all(len(call.args) in signatures(owner, method) for call in calls), signatures(owner, method)


def test_the_inspector_is_there():
    assert hasattr(trt.ICudaEngine, "create_engine_inspector")
    assert hasattr(trt.EngineInspector, "get_engine_information") and inspect.isclass(trt.LayerInformationFormat)
