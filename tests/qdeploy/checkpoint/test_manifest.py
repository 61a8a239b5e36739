"""The schema of qdeploy.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qdeploy.checkpoint.manifest import load_manifest
from qdeploy.errors import CheckpointError
from qdeploy.files import write_json

MINIMAL: dict[str, Any] = {
    "record": "qdeploy-checkpoint",
    "schema_version": 1,
    "provenance": {"qdeploy": "0.1.0"},
    "recipe": {"model": "m"},
    "recipe_sha256": "ab",
    "model": {
        "source": "m",
        "sha256": "cd",
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "parameters": 10,
        "dtype": "bfloat16",
    },
    "modules": [{"name": "a", "scheme": "W4A16", "method": "rtn", "shape": [2, 4]}],
    "totals": {"source_bytes": 20, "output_bytes": 10, "seconds": 1.5, "peak_rss_bytes": 100},
}


def test_manifest_reads_back(tmp_path: Path) -> None:
    write_json(tmp_path / "qdeploy.json", MINIMAL)
    manifest = load_manifest(tmp_path)
    assert manifest is not None
    assert manifest.modules[0].shape == (2, 4)
    assert manifest.calibration is None


def test_a_folder_of_another_tool_has_no_manifest(tmp_path: Path) -> None:
    assert load_manifest(tmp_path) is None


@pytest.mark.parametrize("changes", [{"schema_version": 99}, {"totals": {}}, {"typo": 1}])
def test_a_manifest_of_another_shape_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "qdeploy.json", MINIMAL | changes)
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        load_manifest(tmp_path)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "qdeploy.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"qdeploy\.json is not a qdeploy manifest"):
        load_manifest(tmp_path)
