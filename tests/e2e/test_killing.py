"""kill -9 in the middle, of client and engine: nothing that was finished is lost or asked twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from qdeploy.bench.campaign.state import load_state
from qdeploy.bench.records import load_decision, load_record
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.ports import free_port
from qdeploy.engines.probe import probe
from qdeploy.engines.vllm import RunningEngine, VllmEngine
from tests.e2e.conftest import qdeploy

pytestmark = pytest.mark.e2e

TEXT = ["--text", "builtin", "--windows", "6", "--window-tokens", "128", "--top-k", "16"]
# One request after another, so that the same ones share no batch with others and are answered alike.
EVAL = [*TEXT, "--tasks", "smoke", "--limit", "40", "--concurrency", "1"]

# Requests are counted, and of those that may use its cache vLLM fails some, which are then asked again.
ARGUMENTS = ["--max-model-len", "1024", "--no-enable-scale-out"]


def launch(model: Path, log: Path, port: int) -> RunningEngine:
    return VllmEngine().launch(model, log=log, port=port, arguments=ARGUMENTS)


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


def answered(base_url: str) -> int:
    """Requests that the engine has answered since it was started, by its own account."""
    with Endpoint(base_url) as endpoint:
        page = endpoint.metrics_page() or ""
    lines = [line for line in page.splitlines() if line.startswith("vllm:request_success_total")]
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if 'reason="abort"' not in line))


def probes(engine: RunningEngine) -> int:
    """Requests by which an evaluation finds out what the endpoint can do, before it asks anything."""
    before = answered(engine.base_url)
    with Endpoint(engine.base_url, engine.model) as endpoint:
        probe(endpoint)
    return answered(engine.base_url) - before


def kill_engine(root: int) -> None:
    """SIGKILL to the server and all that it started."""
    for process in psutil.Process(root).children(recursive=True):
        process.kill()


def test_a_killed_client_asks_nothing_twice(engine: RunningEngine, tmp_path: Path) -> None:
    probing, started = probes(engine), answered(engine.base_url)
    qdeploy("eval", engine.base_url, *EVAL, "-o", tmp_path / "whole")
    whole = answered(engine.base_url)
    asked = whole - started - probing
    client = start("eval", engine.base_url, *EVAL, "-o", tmp_path / "run")
    wait_until(lambda: kept(tmp_path / "run.partial") >= 20, client)
    client.kill()
    client.communicate()
    before = kept(tmp_path / "run.partial")
    qdeploy("eval", engine.base_url, *EVAL, "-o", tmp_path / "run")
    assert before >= 20
    # The one request that was under way may have been answered to nobody.
    assert asked <= answered(engine.base_url) - whole - 2 * probing <= asked + 1
    found, expected = load_record(tmp_path / "run"), load_record(tmp_path / "whole")
    assert found.tasks == expected.tasks
    assert found.fidelity == expected.fidelity


def test_a_killed_engine_ends_in_one_message_and_the_same_command_goes_on(
    model: Path, tmp_path: Path, port: int
) -> None:
    with launch(model, tmp_path / "first.log", port) as engine:
        client = start("eval", engine.base_url, *EVAL, "-o", tmp_path / "run")
        wait_until(lambda: kept(tmp_path / "run.partial") >= 20, client)
        kill_engine(engine.process.pid)
        said = client.communicate(timeout=60)[0]
    assert client.returncode == 2, said
    assert "Cannot reach" in said and "the same command goes on" in said
    assert "Traceback" not in said
    before = kept(tmp_path / "run.partial")
    with launch(model, tmp_path / "second.log", port) as engine:
        started = answered(engine.base_url)
        qdeploy("eval", engine.base_url, *EVAL, "-o", tmp_path / "run")
        resumed = answered(engine.base_url) - started
        qdeploy("eval", engine.base_url, *EVAL, "-o", tmp_path / "whole")
        whole = answered(engine.base_url) - started - resumed
        assert before >= 20 and resumed < whole
        assert load_record(tmp_path / "run").tasks == load_record(tmp_path / "whole").tasks
        bench_while_the_engine_dies(engine, tmp_path / "bench")


def bench_while_the_engine_dies(engine: RunningEngine, folder: Path) -> None:
    load = ["--rate", "3", "--num-requests", "40", "--prompt-tokens", "32", "--output-tokens", "4"]
    served = answered(engine.base_url)
    client = start("bench", engine.base_url, *load, "-o", folder)
    wait_until(lambda: answered(engine.base_url) > served + 12, client)
    kill_engine(engine.process.pid)
    said = client.communicate(timeout=60)[0]
    assert client.returncode == 2, said
    assert "does not answer any more" in said and "Traceback" not in said
    found = load_record(folder).load
    assert found and found.lost and found.invalid
    assert found.completed and found.completed + found.failed == 40


def test_a_campaign_goes_on_from_the_step_that_was_killed(model: Path, tmp_path: Path) -> None:
    plan, campaign = tmp_path / "plan.yaml", tmp_path / "campaign"
    fields = {
        "model": str(model.resolve()),
        "engine": {"arguments": ["--max-model-len", "1024"]},
        "variants": [{"name": "w8", "scheme": "W8A8", "method": "rtn"}],
        "load": {"rate": 2, "requests": 16, "prompt_tokens": 32, "output_tokens": 8, "slo": "p50_ttft=5s"},
        "eval": {"text": None, "tasks": ["smoke"], "limit": 60},
    }
    plan.write_text(yaml.safe_dump(fields))
    variants = campaign / "variants"
    client = start("run", plan, "-o", campaign)
    wait_until(lambda: kept(variants / "baseline" / "eval.partial") >= 20, client)
    client.kill()
    client.communicate()
    wait_for_no_server(campaign)
    kept_before = kept(variants / "baseline" / "eval.partial")
    load_before = (variants / "baseline" / "bench" / "run.json").stat().st_mtime_ns

    client = start("run", plan, "-o", campaign)
    wait_until(lambda: status(campaign, "w8", "load") == "running", client)
    [root] = [each for each in servers(campaign) if "qdeploy.engines.reaper" in each.cmdline()]
    url = f"http://127.0.0.1:{root.cmdline()[root.cmdline().index('--port') + 1]}/v1"
    served = answered(url)
    # Four warm it up; some of the sixteen are to be answered, and some are not.
    wait_until(lambda: answered(url) >= served + 12, client)
    kill_engine(root.pid)
    said = client.communicate(timeout=120)[0]
    assert client.returncode == 2, said
    assert "Variant w8, step load: the endpoint does not answer any more" in said.replace("\n", " ")
    assert "Traceback" not in said
    assert f"({kept_before} answered before)" in said.replace("\n", " ")
    assert (variants / "baseline" / "bench" / "run.json").stat().st_mtime_ns == load_before

    result = json.loads(qdeploy("run", plan, "-o", campaign, "--json").stdout)
    assert result["decision"] == json.loads((campaign / "decision.json").read_text())
    assert load_decision(campaign)
    assert (variants / "baseline" / "bench" / "run.json").stat().st_mtime_ns == load_before


def status(campaign: Path, variant: str, step: str) -> str | None:
    state = load_state(campaign)
    found = [v.steps.get(step) for v in state.variants if v.name == variant] if state else []
    return found[0].status if found and found[0] else None


def servers(campaign: Path) -> list[psutil.Process]:
    """Processes that serve a folder of the campaign."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(campaign / "variants") in line:
            found.append(process)
    return found


def wait_for_no_server(campaign: Path) -> None:
    end = time.monotonic() + 60
    while servers(campaign):
        assert time.monotonic() < end, "the engine outlives its client"
        time.sleep(0.5)
