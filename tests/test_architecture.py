"""The walls: one-way imports, a device without torch, small files, a package that costs nothing to import."""

import ast
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hscc_edge"
# From the bottom to the top; what shares a line does not import each other.
LAYERS = (
    ("errors",), ("digest", "durable", "lean", "power_mode"), ("data",), ("bundle",), ("model",), ("runtime",),
    ("export",), ("validate",), ("compress", "serve"), ("cli",), ("__main__",),
)  # fmt: skip
RANK = {"": -1} | {name: rank for rank, names in enumerate(LAYERS) for name in names}
DEVICE = (
    "errors", "digest", "durable", "lean", "power_mode", "bundle", "model", "model.plan", "model.head",
    "model.logistic", "model.decision", "export",
    "export.builder", "export.engine", "export.inspection", "export.parity", "export.reference", "export.refit",
    "export.verification", "export.devices", "runtime.*", "serve.*", "validate.*", "data", "data.appearance",
    "data.case", "data.codestream", "data.cohort",
    "data.contained", "data.decoders", "data.dicom", "data.frames", "data.geometry", "data.jpeg12", "data.limits",
    "data.lock", "data.lookup", "data.percentiles", "data.pixels", "data.preprocess", "data.pseudonym", "data.series",
    "data.slices", "data.split", "data.steps", "data.steps_space", "data.subgroups", "data.voi", "data.volume",
)  # fmt: skip
WORKSTATION = {"runtime.eager", "validate.flips", "validate.saliency", "validate.robustness"}
HEAVY = {"torch", "monai"}
CORE = {"gdcm", "numpy", "scipy", "pydicom", "PIL", "safetensors", "typer", "rich", "tomli", "tomli_w"}
ALLOWED = {
    "serve": {
        "numpy", "pydicom", "pynetdicom", "highdicom", "scipy", "tomli",
        "PIL", "argon2", "cryptography", "fhir", "hl7apy", "httpx", "itsdangerous", "jinja2", "markupsafe",
        "opentelemetry", "prometheus_client", "python_multipart", "starlette", "structlog", "uvicorn",
    },
    "runtime": {"numpy", "onnxruntime", "cuda"},
    "runtime.eager": {"numpy", "torch"},
}  # fmt: skip
BANNED = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core"}


@dataclass(frozen=True, slots=True)
class Import:
    """One import of an absolute module; `lazy` inside a function, `guarded` inside `with extra(...)`."""

    module: str
    line: int
    lazy: bool
    guarded: bool
    typing: bool

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def name_of(path: Path) -> str:
    """`serve.daemon` of hscc_edge/serve/daemon.py, `serve` of its __init__.py, "" of the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
each_module = pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "hscc_edge")


def calls_extra(node: ast.AST) -> bool:
    calls = [item.context_expr for item in node.items] if isinstance(node, ast.With) else []
    return any(isinstance(c, ast.Call) and isinstance(c.func, ast.Name) and c.func.id == "extra" for c in calls)


def imports_in(node: ast.AST, lazy: bool = False, guarded: bool = False, typing: bool = False) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            base = child.module or "" if isinstance(child, ast.ImportFrom) else ""
            for alias in child.names:
                longest = f"{base}.{alias.name}".lstrip(".")
                own = longest.removeprefix("hscc_edge.") in MODULES
                yield Import(longest if own or not base else base, child.lineno, lazy, guarded, typing)
        else:
            yield from imports_in(
                child,
                lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)),
                guarded or calls_extra(child),
                typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)),
            )


@cache
def imports_of(name: str) -> tuple[Import, ...]:
    return tuple(imports_in(ast.parse(MODULES[name].read_text())))


def own_imports(name: str) -> Iterator[tuple[str, Import]]:
    """Modules of this package that a module imports, by their short name."""
    for found in imports_of(name):
        if found.package == "hscc_edge":
            yield found.module.removeprefix("hscc_edge").lstrip("."), found


def third_party(name: str) -> Iterator[Import]:
    known = {*sys.stdlib_module_names, "hscc_edge"}
    return (found for found in imports_of(name) if found.package not in known and not found.typing)


def is_device(name: str) -> bool:
    listed = name in DEVICE or f"{name.partition('.')[0]}.*" in DEVICE
    return listed and name not in WORKSTATION


@each_module
def test_every_module_has_a_layer(name):
    top = name.partition(".")[0]
    assert top in RANK, f"hscc_edge/{top} has no place: give it one in LAYERS and in CONTRIBUTING.md"


@each_module
def test_imports_point_one_way(name):
    own = name.partition(".")[0]
    for other, found in own_imports(name):
        layer = other.partition(".")[0]
        beneath = layer == own or RANK[layer] < RANK[own]
        assert beneath, f"{MODULES[name]}:{found.line} imports {found.module}, which does not lie below hscc_edge.{own}"


@each_module
def test_optional_packages_are_guarded(name):
    for found in third_party(name):
        assert found.package in CORE or found.guarded, (
            f"{MODULES[name]}:{found.line} imports {found.package} outside `with extra(...)`"
        )


@pytest.mark.parametrize("name", [name for name in MODULES if name.partition(".")[0] in ALLOWED])
def test_what_the_device_may_import(name):
    allowed = ALLOWED.get(name) or ALLOWED[name.partition(".")[0]]
    unknown = {found.package for found in third_party(name)} - allowed
    assert not unknown, f"{MODULES[name]} imports {unknown}: it may import {sorted(allowed)}"


def heavy_chain(start: str) -> list[str]:
    """The shortest way by which importing a module imports torch or MONAI; empty if there is none."""
    queue, seen = deque([[start]]), {start}
    while queue:
        chain = queue.popleft()
        for found in imports_of(chain[-1]):
            if found.package in HEAVY and not (found.lazy or found.typing):
                return [*chain, found.package]
        wanted = [other for other, found in own_imports(chain[-1]) if not (found.lazy or found.typing)]
        for other in [
            *wanted,
            *(other.rpartition(".")[0] for other in wanted),
        ]:  # a package is imported before its module
            if other not in seen:
                seen.add(other)
                queue.append([*chain, other])
    return []


@pytest.mark.parametrize("name", [name for name in MODULES if is_device(name)])
def test_a_device_module_names_neither_torch_nor_monai(name):
    for found in imports_of(name):
        place = f"{MODULES[name]}:{found.line}"
        assert found.package not in HEAVY, f"{place} imports {found.package}, but runs on the device"
    chain = heavy_chain(name)
    assert not chain, f"importing {name} imports {chain[-1]}, by way of {' -> '.join(chain)}"


def test_importing_the_device_loads_neither_torch_nor_monai():
    names = [f"hscc_edge.{name}" for name in MODULES if is_device(name)]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    heavy = sorted({'torch', 'monai'} & set(sys.modules))\n"
        "    if heavy: sys.exit(f'{name} loaded {heavy}')\n"
        "print('hscc_edge.serve.daemon' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


def test_the_package_itself_costs_only_the_standard_library():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules); import hscc_edge; "
        "print(sorted({n.partition('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['hscc_edge']"


@pytest.mark.parametrize("folder", ["hscc_edge", "tests", "benchmarks"])
def test_files_are_short_and_named_by_a_noun(folder):
    for path in (ROOT / folder).rglob("*.py"):
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{path} has {lines} lines, 400 are allowed: split it by nouns"
        banned = BANNED & set(path.relative_to(ROOT).with_suffix("").parts)
        assert not banned, f"{path}: {banned} says nothing: name it by its noun"


def handler_faults(node: ast.ExceptHandler, line: str) -> Iterator[str]:
    """A broad handler must say why; one that also catches KeyboardInterrupt must raise again."""
    caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else set()
    if node.type is None:
        yield "has a bare except"
    if "Exception" in caught and "#" not in line:
        yield "catches Exception without a comment that says why no narrower class will do"
    if "BaseException" in caught and not isinstance(node.body[-1], ast.Raise):
        yield "catches BaseException and does not raise it again"


def faults_in(path: Path) -> Iterator[str]:
    text = path.read_text()
    lines, tree = text.splitlines(), ast.parse(text)
    for node in ast.walk(tree):
        place = f"{path}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Assert):
            yield f"{place} asserts: raise an error of hscc_edge.errors"
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield f"{place} imports relatively: write the absolute name"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield f"{place} prints: log, or show it through cli/output.py"
        elif isinstance(node, ast.ExceptHandler):
            yield from (f"{place} {fault}" for fault in handler_faults(node, lines[node.lineno - 1]))
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > 60:
                yield f"{place} {node.name} is {length} lines long, 60 are allowed"
    for node in tree.body:
        public = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and node.name[0] != "_"
        if public and not ast.get_docstring(node):
            yield f"{path}:{node.lineno} {node.name} has no docstring"


@each_module
def test_code_keeps_the_house_style(name):
    faults = list(faults_in(MODULES[name]))
    assert not faults, "\n".join(faults)
