"""docs/adding-a-method.md as a reader would follow it: its files are written, installed, tested and used."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qdeploy.checkpoint.manifest import Manifest, load_manifest

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-method.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^\*\*`(\S+)`\*\*\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]
INSTALL = (
    "-m",
    "pip",
    "install",
    "--quiet",
    "--no-build-isolation",
    "--no-deps",
    "--no-index",
    "--no-compile",
)


@dataclass(frozen=True)
class Reader:
    """Somebody's folder with the model and the package in it, which is installed beside it.

    Attributes:
        shown: command of the page → what it printed.
    """

    folder: Path
    shown: dict[str, str] = field(default_factory=dict)

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        here = {"PYTHONPATH": str(self.folder / "installed"), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=os.environ | here,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def qdeploy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "qdeploy", *arguments)

    def install(self, package: str) -> None:
        found = self.python(*INSTALL, "--target", str(self.folder / "installed"), package)
        assert found.returncode == 0, found.stderr

    def manifest(self, output: str) -> Manifest:
        found = load_manifest(self.folder / output)
        assert found is not None
        return found


@pytest.fixture(scope="module")
def reader(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """One who has written the files and run every command of the page."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "model").symlink_to(tiny_llama)
    (folder / "my-methods").mkdir()
    for name, text in FILES.items():
        (folder / ("" if name == "recipe.yaml" else "my-methods") / name).write_text(text, encoding="utf-8")
    reader = Reader(folder)
    for line in COMMANDS:
        program, *arguments = shlex.split(line)
        if program == "pip":
            reader.install(arguments[-1])
            continue
        found = reader.qdeploy(*arguments)
        assert found.returncode == 0, f"{line}\n{found.stderr}"
        reader.shown[line] = found.stdout
    return reader


def test_the_page_has_the_files_and_commands_that_are_tested_here() -> None:
    assert list(FILES) == [
        "pyproject.toml",
        "my_descent.py",
        "my_equalize.py",
        "test_methods.py",
        "recipe.yaml",
    ]
    assert len(re.findall(r"^```python$", PAGE, re.MULTILINE)) == 3
    assert [line.split()[0] for line in COMMANDS].count("qdeploy") == 5


def test_both_methods_are_listed_like_qdeploys_own(reader: Reader) -> None:
    listed = json.loads(reader.qdeploy("methods", "--json").stdout)
    methods = {method["name"]: method for method in listed["methods"]}
    assert {"awq", "descent", "equalize", "gptq", "rtn", "smoothquant"} <= set(methods)
    assert listed["broken"] == []
    assert [methods[name]["kind"] for name in ("descent", "equalize")] == ["rounder", "transform"]
    assert {methods[name]["origin"] for name in ("descent", "equalize")} == {"my-methods 0.1"}
    assert methods["descent"]["summary"].startswith("Coordinate descent on codes")


def test_the_knobs_are_shown_with_bounds_and_defaults(reader: Reader) -> None:
    shown = reader.shown["qdeploy methods descent"]
    assert re.search(r"passes +│ int +│ ≥ 1, ≤ 100 +│ 4 +│ How often each column is looked at", shown)
    assert re.search(r"damp +│ float +│ ≥ 0, ≤ 1 +│ 0\.01 ", shown)


def test_the_documented_tests_pass(reader: Reader) -> None:
    found = reader.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "my-methods/test_methods.py")
    assert found.returncode == 0, found.stdout
    assert re.search(r"\d\d passed", found.stdout)


def test_checkpoints_name_the_stages_and_who_brought_them(reader: Reader) -> None:
    manifest = reader.manifest("model-both")
    assert {module.method for module in manifest.modules} == {"equalize+descent"}
    assert manifest.provenance["methods"] == dict.fromkeys(("descent", "equalize"), "my-methods 0.1")
    assert not any(module.fallback for module in manifest.modules)


def test_a_recipe_sets_the_knobs(reader: Reader) -> None:
    manifest = reader.manifest("model-mixed")
    assert manifest.recipe["rules"][1]["stages"] == [{"descent": {"passes": 8, "damp": 0.02}}]
    found = {(module.method, module.scheme.split()[0]) for module in manifest.modules}
    assert found == {("equalize+descent", "W8A8"), ("descent", "W4A16")}


def test_a_knob_out_of_bounds_is_one_message(reader: Reader) -> None:
    recipe = FILES["recipe.yaml"].replace("passes: 8", "passes: 0")
    (reader.folder / "wrong.yaml").write_text(recipe, encoding="utf-8")
    found = reader.qdeploy("quantize", "--recipe", "wrong.yaml", "-o", "never")
    assert found.returncode == 2
    assert found.stderr == "Error: descent: passes: Input should be greater than or equal to 1 (got 0)\n"
    assert not list(reader.folder.glob("never*"))
