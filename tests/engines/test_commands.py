"""The commands as a person runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import typer
from typer.testing import CliRunner

from qdeploy.engines import commands
from qdeploy.engines.doctor import doctor, examine
from qdeploy.engines.environment import Environment
from qdeploy.engines.ports import free_port


def _app() -> typer.Typer:
    app = typer.Typer()
    app.add_typer(commands.app, name="engines")
    app.command()(commands.serve)
    app.command()(doctor)
    return app


SERVE = """
import sys
from pathlib import Path
import typer
from qdeploy.engines import commands, environment, vllm
vllm.find = lambda *_: environment.Environment("vllm", "0.32.0", "cpu", Path(sys.executable))
app = typer.Typer()
app.command()(commands.serve)
app(sys.argv[1:])
"""


def test_serve_says_where_and_stops_cleanly_on_ctrl_c(
    model_folder: Callable[..., Path], tiny_environment: Environment, tmp_path: Path
) -> None:
    port = free_port()
    command = [sys.executable, "-c", SERVE, str(model_folder()), "--port", str(port), "--json"]
    process = subprocess.Popen(
        [*command, "--", "--seed", "3"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        engine = json.loads(process.stdout.readline())
        assert engine["base_url"] == f"http://127.0.0.1:{port}/v1"
        assert engine["arguments"][-2:] == ["--seed", "3"]
        tree = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        assert len(tree) == 2
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        said = process.stderr.read()
    assert "16-bit, no quantized layers" in said
    assert "Stopped." in said
    assert not any(psutil.pid_exists(pid) for pid in tree)
    assert (tmp_path / "home" / "logs" / "serve.log").is_file()


def test_engines_list_is_json_when_asked() -> None:
    result = CliRunner().invoke(_app(), ["engines", "list", "--json"])
    assert json.loads(result.stdout) == []


def test_engines_list_says_how_to_get_one() -> None:
    result = CliRunner().invoke(_app(), ["engines", "list"])
    assert "qdeploy engines install vllm" in result.stderr


def test_doctor_names_what_is_missing_and_the_command() -> None:
    findings = json.loads(CliRunner().invoke(_app(), ["doctor", "--json"]).stdout)
    assert findings["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert findings["quantize"]["parameters"] > 0
    device = findings["serve"]["device"]
    assert findings["missing"][f"engine vllm for {device}"].startswith("qdeploy engines install vllm")
    text = CliRunner().invoke(_app(), ["doctor"]).stdout
    assert "W4A16" in text
    assert "billion parameters" in text


def test_doctor_reads_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        '#!/bin/sh\n[ "$1" = -L ] && echo "GPU 0: Test" || echo "Test GPU, 24576, 7.0"\n', encoding="utf-8"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    findings = examine()
    assert findings["gpus"] == [{"name": "Test GPU", "memory_bytes": 24 << 30, "compute_capability": 7.0}]
    assert findings["serve"]["device"] == "cuda"
    assert findings["serve"]["schemes"]["W4A16"] == "needs compute capability 7.5, the GPU has 7.0"


def test_commands_import_nothing_heavy() -> None:
    code = "import sys, qdeploy.engines.commands, qdeploy.engines.doctor; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"torch", "transformers", "httpx", "pydantic", "psutil"} & set(loaded)


def test_a_port_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    refused = CliRunner().invoke(_app(), ["serve", str(tmp_path), "--port", "99999"])
    assert refused.exit_code == 2
    assert "65535" in refused.output
