"""kill -9 in the middle, of client and engine: nothing that was finished is lost or asked twice."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from qdeploy.bench.records import load_record
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.ports import free_port
from qdeploy.engines.probe import probe
from qdeploy.engines.vllm import RunningEngine, VllmEngine
from tests.e2e.conftest import qdeploy

pytestmark = pytest.mark.e2e

TEXT = ["--text", "builtin", "--windows", "6", "--window-tokens", "128", "--top-k", "16"]
# One request after another, so that the same ones share no batch with others and are answered alike.
EVAL = [*TEXT, "--tasks", "smoke", "--limit", "40", "--concurrency", "1"]


def launch(model: Path, log: Path, port: int) -> RunningEngine:
    return VllmEngine().launch(model, log=log, port=port, arguments=["--max-model-len", "1024"])


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def engine(model: Path, tmp_path: Path, port: int) -> Iterator[RunningEngine]:
    with launch(model, tmp_path / "engine.log", port) as running:
        yield running


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "qdeploy", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "too late"
        time.sleep(0.05)


def kept(folder: Path) -> int:
    """Answers on disk of an evaluation that is not whole."""
    path = folder / "answers.jsonl"
    return max(len(path.read_text().splitlines()) - 1, 0) if path.exists() else 0


def answered(engine: RunningEngine) -> int:
    """Requests that the engine has answered since it was started, by its own account."""
    with Endpoint(engine.base_url, engine.model) as endpoint:
        page = endpoint.metrics_page() or ""
    lines = [line for line in page.splitlines() if line.startswith("vllm:request_success_total")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if 'reason="abort"' not in line))


def probes(engine: RunningEngine) -> int:
    """Requests by which an evaluation finds out what the endpoint can do, before it asks anything."""
    before = answered(engine)
    with Endpoint(engine.base_url, engine.model) as endpoint:
        probe(endpoint)
    return answered(engine) - before


def kill_engine(root: int) -> None:
    """SIGKILL to the server and all that it started."""
    for process in psutil.Process(root).children(recursive=True):
        process.kill()


def test_a_killed_client_asks_nothing_twice(engine: RunningEngine, tmp_path: Path) -> None:
    probing, started = probes(engine), answered(engine)
    qdeploy("eval", engine.base_url, *EVAL, "-o", tmp_path / "whole")
    whole = answered(engine)
    asked = whole - started - probing
    client = start("eval", engine.base_url, *EVAL, "-o", tmp_path / "run")
    wait_until(lambda: kept(tmp_path / "run.partial") >= 20, client)
    client.kill()
    client.communicate()
    before = kept(tmp_path / "run.partial")
    qdeploy("eval", engine.base_url, *EVAL, "-o", tmp_path / "run")
    assert before >= 20
    # The one request that was under way may have been answered to nobody.
    assert asked <= answered(engine) - whole - 2 * probing <= asked + 1
    found, expected = load_record(tmp_path / "run"), load_record(tmp_path / "whole")
    assert found.tasks == expected.tasks
    assert found.fidelity == expected.fidelity


def test_a_killed_engine_ends_in_one_message(model: Path, tmp_path: Path, port: int) -> None:
    with launch(model, tmp_path / "first.log", port) as engine:
        client = start("eval", engine.base_url, *EVAL, "-o", tmp_path / "run")
        wait_until(lambda: kept(tmp_path / "run.partial") >= 20, client)
        kill_engine(engine.process.pid)
        said = client.communicate(timeout=60)[0]
    assert client.returncode == 2, said
    assert "Cannot reach" in said and "the same command goes on" in said
    assert "Traceback" not in said
