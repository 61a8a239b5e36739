"""Who may import whom: the core knows nothing of what is built on it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "qdeploy": set(),
    "exporters": {"exporters"},
    "engines": {"engines"},
    "bench": {"bench", "exporters", "engines"},
}


def imported_packages(path: Path) -> set[str]:
    """Second components of every `qdeploy.<package>` that the file imports, at any depth."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return {name.split(".")[1] for name in names if name.startswith("qdeploy.")}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_follow_the_design(package: str) -> None:
    upper = {"exporters", "engines", "bench"}
    for path in (ROOT / package).rglob("*.py"):
        wrong = imported_packages(path) & upper - ALLOWED[package]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"
