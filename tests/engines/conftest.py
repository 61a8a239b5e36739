"""Real local servers: tiny_server.py under the same supervision as an engine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qdeploy.engines.environment import Environment
from qdeploy.engines.ports import free_port
from qdeploy.engines.process import ServerProcess

SERVER = Path(__file__).with_name("tiny_server.py")


@pytest.fixture(autouse=True)
def no_keys_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the person's own: keys, installed engines."""
    for name in ("QDEPLOY_API_KEY", "OPENAI_API_KEY", "VLLM_API_KEY", "QDEPLOY_VLLM_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QDEPLOY_HOME", str(tmp_path / "home"))


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a model folder whose server behaves as given."""

    def make(config: dict[str, Any] | None = None, **behaviour: Any) -> Path:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config or {}))
        (folder / "behaviour.json").write_text(json.dumps(behaviour))
        return folder

    return make


@pytest.fixture
def serve(tmp_path: Path, model_folder: Callable[..., Path]) -> Iterator[Callable[..., str]]:
    """Starts a tiny server and returns its base URL; stopped at the end."""
    started: list[ServerProcess] = []

    def start(**behaviour: Any) -> str:
        process, root = start_server(model_folder(**behaviour), tmp_path / "server.log")
        started.append(process)
        process.wait_ready([f"{root}/health"], 20.0)
        return f"{root}/v1"

    yield start
    for process in started:
        process.stop()


def start_server(folder: Path, log: Path) -> tuple[ServerProcess, str]:
    """The supervised server of a model folder, not ready yet, and its root URL."""
    port = free_port()
    command = [sys.executable, str(SERVER), "--model", str(folder), "--port", str(port)]
    return ServerProcess(command, log, os.environ), f"http://127.0.0.1:{port}"


@pytest.fixture
def tiny_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment whose `python -m vllm.entrypoints.openai.api_server` is the tiny server."""
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(SERVER.read_text())
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    return Environment("vllm", "0.32.0", "cpu", Path(sys.executable))
