"""From what the user typed to a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdeploy.errors import CheckpointError
from qdeploy.modeling.hub import resolve_model


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_gguf_file_points_to_import(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="qdeploy import"):
        resolve_model(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c", "word"])
def test_a_wrong_path_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a model folder nor a hub id"):
        resolve_model(name)


def test_no_network_is_said_plainly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"not in the hub cache, and HF_HUB_OFFLINE is set"):
        resolve_model("nobody/nothing")
