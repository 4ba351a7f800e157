"""The walls: one-way imports, a device without torch, small files, a package that costs nothing to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hscc_edge"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = {
    "errors": 0, "durable": 1, "data": 2, "bundle": 3, "model": 4, "runtime": 5, "export": 6, "validate": 7,
    "compress": 8, "serve": 8, "cli": 9, "__init__": -1, "__main__": 10,
}  # fmt: skip
DEVICE = [
    "bundle", "data.dicom", "data.preprocess", "data.cohort", "data.pseudonym", "model.plan", "model.head",
    "model.decision", "runtime", "runtime.ort", "runtime.trt", "export.engine", "validate.predict",
    "validate.latency", "validate.compare", "validate.evidence", "validate.metrics", "validate.report",
    "serve.daemon", "serve.receiver", "serve.sr", "serve.config",
]  # fmt: skip
THIRD_PARTY = {
    "serve": {"numpy", "pydicom", "pynetdicom", "highdicom"},
    "runtime": {"numpy", "onnxruntime", "torch", "cuda"},
}
CORE = {"numpy", "scipy", "pydicom", "PIL", "safetensors", "typer", "rich", "tomli", "tomli_w"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "__init__"


def imports_of(path: Path) -> list[tuple[str, ast.AST]]:
    """Every absolute module that a file imports anywhere, also inside functions and under TYPE_CHECKING."""
    found: list[tuple[str, ast.AST]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            module = node.module or ""
            found.append((module, node))
            found += [(f"{module}.{alias.name}", node) for alias in node.names if module.startswith("hscc_edge")]
    return found


def guarded_of(path: Path) -> set[int]:
    """Lines inside `with extra(...)`."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.With):
            call = node.items[0].context_expr
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "extra":
                lines |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path):
    own = name_of(path).partition(".")[0]
    for module, _ in imports_of(path):
        if not module.startswith("hscc_edge."):
            continue
        other = module.split(".")[1]
        if other not in LAYERS:
            continue
        assert LAYERS[other] <= LAYERS[own], f"{path} imports {module}, which lies above it"
        assert other == own or LAYERS[other] < LAYERS[own], f"{path} imports {module}, which stands beside it"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_optional_packages_are_guarded(path):
    guarded = guarded_of(path)
    for module, node in imports_of(path):
        package = module.partition(".")[0]
        if package in CORE or package in sys.stdlib_module_names or package == "hscc_edge":
            continue
        at_top = node.col_offset == 0 or node.lineno in guarded
        assert not at_top or node.lineno in guarded, f"{path}:{node.lineno} imports {package} outside `with extra(...)`"


@pytest.mark.parametrize("folder", THIRD_PARTY)
def test_what_the_device_may_import(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        packages = {module.partition(".")[0] for module, _ in imports_of(path)}
        unknown = packages - set(sys.stdlib_module_names) - {"hscc_edge", "tomli"} - THIRD_PARTY[folder]
        assert not unknown, f"{path} imports {unknown}"
        if "torch" in packages:
            assert path.name == "eager.py"


@pytest.mark.parametrize("module", DEVICE)
def test_the_device_needs_neither_torch_nor_monai(module):
    code = f"import hscc_edge.{module}, sys; print([n for n in ('torch', 'monai') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_itself_costs_only_the_standard_library():
    code = (
        "import sys; before = set(sys.modules); import hscc_edge; "
        "print(sorted({n.partition('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['hscc_edge']"


@pytest.mark.parametrize("folder", ["hscc_edge", "tests", "benchmarks"])
def test_files_are_short_and_named_by_a_noun(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, f"{path} is longer than 400 lines"
        assert path.stem not in {"utils", "helpers", "common", "misc", "base", "core"}, path


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_are_short_documented_and_never_assert(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"{path}:{node.lineno} asserts: raise an error of hscc_edge.errors"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path}:{node.lineno} has a bare except"
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno
            assert length <= 60, f"{path}:{node.lineno} {node.name} is {length} lines long"
    for node in tree.body:
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if public:
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name} has no docstring"
