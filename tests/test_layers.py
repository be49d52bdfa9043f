"""Imports point downwards: the command line and the benchmarks are on top, `shards` is at the bottom."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {  # package -> the packages of ours that it may import
    "shards": set(),
    "models": {"shards"},
    "sql": {"shards"},
    "pipeline": {"shards", "models", "sql"},
    "reports": {"shards", "sql"},
}
TOP = ("pipeline/cli/", "pipeline/bench/")  # may import everything


def imported_packages(path: Path) -> set[str]:
    """The packages of ours that a file imports, at its top or inside its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[0] for name in names} & ALLOWED.keys()


@pytest.mark.parametrize("package", ALLOWED)
def test_no_module_imports_a_higher_layer(package):
    paths = [path.relative_to(ROOT) for path in sorted((ROOT / package).rglob("*.py"))]
    assert paths
    for path in paths:
        if not str(path).startswith(TOP):
            assert imported_packages(ROOT / path) <= ALLOWED[package] | {package}, path


def test_networks_know_nothing_of_files_below_out():
    for path in (ROOT / "models").rglob("*.py"):
        assert "shards.workspace" not in path.read_text(encoding="utf-8"), path
