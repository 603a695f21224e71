"""Imports run one way: the laboratory measures the product, and the product does not know of it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRODUCT = {path.stem: path for path in ROOT.glob("*.py")}
LABORATORY = {f"benchmark.{path.stem}": path for path in (ROOT / "benchmark").glob("*.py")}
MODULES = PRODUCT | LABORATORY
SCRIPTS = {"train", "evaluate", "inference", "export"}


def imports(path):
    """Modules of this repository that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & MODULES.keys()


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nothing_imports_what_stands_above_it(name):
    found = imports(MODULES[name])
    # `evaluate` measures what people import from `inference`.
    assert not found & (SCRIPTS - {"inference"} if name == "evaluate" else SCRIPTS)
    if name in PRODUCT and name != "evaluate":
        assert not found & LABORATORY.keys(), "the product imports what measures it"


def test_no_module_imports_itself_through_others():
    waiting = {name: imports(path) for name, path in MODULES.items()}
    while waiting:
        free = {name for name, needed in waiting.items() if not needed & waiting.keys()}
        assert free, f"these import each other: {sorted(waiting)}"
        waiting = {name: needed for name, needed in waiting.items() if name not in free}
