"""Campaigns on a tiny model, served by a real process that speaks vLLM's API."""

from __future__ import annotations

import html
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qdeploy.bench.campaign import run_campaign
from qdeploy.bench.campaign.state import State, VariantState
from qdeploy.bench.campaign.steps import StepError, Steps, fingerprint, stamp
from qdeploy.bench.load.client import use as client_use
from qdeploy.bench.load.figures import metrics
from qdeploy.bench.records import load_decision, load_record
from qdeploy.errors import (
    CheckpointError,
    EndpointError,
    Interrupted,
    OutputError,
    UsageError,
    VerificationError,
)

SERVER = Path(__file__).parents[1] / "engines" / "tiny_server.py"
LAUNCHER = f"""
import json, pathlib, runpy, sys
config = pathlib.Path(sys.argv[sys.argv.index("--model") + 1], "config.json")
if "quantization_config" in json.loads(config.read_text()):
    print("INFO [__init__.py:847] Selected TinyKernel for CompressedTensorsW8A8Int8", flush=True)
runpy.run_path({str(SERVER)!r}, run_name="__main__")
"""


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed engine whose server is tests/engines/tiny_server.py; returns the server's source."""
    for name in ("QDEPLOY_API_KEY", "OPENAI_API_KEY", "VLLM_API_KEY", "QDEPLOY_VLLM_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(LAUNCHER)
    python = tmp_path / "home" / "engines" / "vllm-0.32.0-cpu" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    stamp = {"engine": "vllm", "version": "0.32.0", "device": "cpu"}
    (python.parents[1] / "installed.json").write_text(json.dumps(stamp))
    # A busy machine beside a server that answers at once: what is measured here is of no matter.
    monkeypatch.setattr(client_use, "MAX_SHARE", math.inf)
    monkeypatch.setattr(metrics, "MAX_LAG_MS", math.inf)
    monkeypatch.setattr(metrics, "MAX_RATE_ERROR", math.inf)
    monkeypatch.setenv("QDEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    return package / "api_server.py"


@pytest.fixture
def plan(tmp_path: Path, tiny_llama: Path) -> Callable[..., Path]:
    """Writes a plan with the given changes."""
    (tmp_path / "text.txt").write_text("A text to score, long enough for two windows of tokens. " * 4)

    def write(**changes: Any) -> Path:
        fields: dict[str, Any] = {
            "model": str(tiny_llama),
            "engine": {"device": "cpu"},
            "variants": [{"name": "w8-rtn", "scheme": "W8A8", "method": "rtn"}],
            "load": {"concurrency": 1, "requests": 2, "warmup": 0, "prompt_tokens": 4, "output_tokens": 1},
            "eval": {"text": "text.txt", "windows": 2, "window_tokens": 32, "top_k": 8, "tasks": []},
        }
        fields["eval"]["tokenizer"] = str(tiny_llama)
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(fields | changes))
        return path

    return write


def finished(campaign: Path) -> dict[tuple[str, str], int]:
    """(variant, step) → when the step's result was written."""
    results = {"quantize": "checkpoint/config.json", "export": "deploy/engine_args.json"}
    results |= {"load": "bench/run.json", "eval": "eval/run.json"}
    return {
        (folder.name, step): (folder / result).stat().st_mtime_ns
        for folder in (campaign / "variants").iterdir()
        for step, result in results.items()
        if (folder / result).exists()
    }


def test_the_whole_line_then_only_what_a_change_touches(
    tmp_path: Path, engine: Path, plan: Callable[..., Path]
) -> None:
    campaign = tmp_path / "campaign"
    report = run_campaign(plan(), campaign)
    first = finished(campaign)
    assert {step for variant, step in first if variant == "w8-rtn"} == {"quantize", "export", "load", "eval"}
    assert {step for variant, step in first if variant == "baseline"} == {"export", "load", "eval"}
    record = load_record(campaign / "variants" / "w8-rtn" / "eval")
    assert record.engine.kernel == "TinyKernel"
    assert record.baseline == str(campaign / "variants" / "baseline" / "eval")
    assert first["baseline", "eval"] < first["w8-rtn", "load"] < first["w8-rtn", "eval"]
    loads = [load_record(campaign / "variants" / name / "bench").load for name in ("baseline", "w8-rtn")]
    assert loads[0] and loads[1] and loads[0].prompts_sha256 == loads[1].prompts_sha256
    assert loads[1].output_length_ratio and loads[1].output_length_ratio.value == 1
    assert "TinyKernel" in report.read_text()

    run_campaign(plan(), campaign)
    assert finished(campaign) == first

    longer = plan(load={"concurrency": 1, "requests": 3, "warmup": 0, "prompt_tokens": 4, "output_tokens": 1})
    run_campaign(longer, campaign)
    assert {key for key, time in finished(campaign).items() if time != first[key]} == {
        ("baseline", "load"),
        ("w8-rtn", "load"),
    }


def limited(slo: str, rates: list[float]) -> dict[str, Any]:
    """Changes of the plan: seven requests, of which a median can be shown."""
    load = {"rate": 10, "requests": 7, "warmup": 0, "prompt_tokens": 4, "output_tokens": 1, "slo": slo}
    return {"load": load, "objective": {"rates": rates, "fail_if": ["kl_mean>100"]}}


def test_rates_are_tried_besides_and_a_variant_is_recommended(
    tmp_path: Path, engine: Path, plan: Callable[..., Path]
) -> None:
    campaign = tmp_path / "campaign"
    report = run_campaign(plan(**limited("p50_e2e=60s", [5])), campaign)
    for name in ("baseline", "w8-rtn"):
        folder = campaign / "variants" / name
        own, tried = (load_record(folder / run).load for run in ("bench", "rates/5"))
        assert own and tried and (own.rate, tried.rate) == (10, 5)
        assert own.prompts_sha256 != tried.prompts_sha256, "the server has seen those of the first"
    decision = load_decision(campaign)
    assert decision and decision.verdict == "pass"
    assert decision.recommended
    assert decision.headline in html.unescape(report.read_text())

    run_campaign(plan(**limited("p50_e2e=60s", [6])), campaign)
    assert [path.name for path in campaign.glob("variants/w8-rtn/rates/*/")] == ["6"]


def test_an_invalid_load_run_is_made_again(tmp_path: Path, engine: Path, plan: Callable[..., Path]) -> None:
    campaign = tmp_path / "campaign"
    run_campaign(plan(), campaign)
    first, folder = finished(campaign), campaign / "variants" / "w8-rtn" / "bench"
    spoilt = load_record(folder)
    assert spoilt.load
    spoilt.load.invalid = ["the machine stood still"]
    spoilt.save(folder)
    run_campaign(plan(), campaign)
    load = load_record(folder).load
    assert load and not load.invalid
    assert {key for key, time in finished(campaign).items() if time != first[key]} == {("w8-rtn", "load")}


def test_no_rate_is_tried_above_one_that_breaks_the_objective(
    tmp_path: Path, engine: Path, plan: Callable[..., Path]
) -> None:
    campaign = tmp_path / "campaign"
    asked = plan(**limited("p50_e2e=0.001ms", [5, 20]))
    run_campaign(asked, campaign)
    assert [path.name for path in campaign.glob("variants/w8-rtn/rates/*/")] == ["5"]
    decision = load_decision(campaign)
    assert decision and (decision.verdict, decision.recommended) == ("fail", None)
    engine.write_text("raise SystemExit('nothing is to be served')")
    run_campaign(asked, campaign)


def test_a_failed_step_names_variant_step_and_log_and_is_gone_on_with(
    tmp_path: Path, engine: Path, plan: Callable[..., Path]
) -> None:
    campaign = tmp_path / "campaign"
    engine.write_text("raise SystemExit('no memory left')")
    with pytest.raises(
        StepError, match=r"(?s)Variant baseline, step serve: .*no memory left.*engine.log"
    ) as caught:
        run_campaign(plan(), campaign)
    assert caught.value.exit_code == 2
    exported = finished(campaign)
    engine.write_text(LAUNCHER)
    run_campaign(plan(), campaign)
    assert finished(campaign)["baseline", "export"] == exported["baseline", "export"]


def test_another_folder_is_left_alone(tmp_path: Path, engine: Path, plan: Callable[..., Path]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(OutputError, match="not empty and not a campaign"):
        run_campaign(plan(), tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_a_plan_whose_model_is_not_there_makes_no_folder(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("model: /no/such/model\nvariants: [{name: a}]\nload: {rate: 1}")
    with pytest.raises(CheckpointError, match="/no/such/model"):
        run_campaign(plan, tmp_path / "campaign")
    assert not (tmp_path / "campaign").exists()


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    state = State(plan_text="", plan={})
    state.variants.append(VariantState(name="v", kind="quantized", checkpoint="c", deploy="d"))
    return Steps(tmp_path, state)


def run_step(steps: Steps, inputs: str, action: Callable[[Path], object] = Path.touch) -> None:
    """The step "export" of variant v, whose result is the file out/done."""
    result = steps.folder / "out" / "done"

    def act() -> None:
        result.parent.mkdir()
        action(result)

    steps.run(steps.state.variants[0], "export", fingerprint(inputs), result, act)


def forbidden(_: Path) -> None:
    raise AssertionError("done again")


def test_a_step_is_done_once_for_the_same_inputs(steps: Steps) -> None:
    run_step(steps, "a")
    run_step(steps, "a", forbidden)


def test_a_step_is_redone_from_nothing_for_other_inputs(steps: Steps) -> None:
    run_step(steps, "a")
    (steps.folder / "out" / "old").touch()
    run_step(steps, "b")
    assert [path.name for path in (steps.folder / "out").iterdir()] == ["done"]


@pytest.mark.parametrize(("inputs", "goes_on"), [("a", True), ("b", False)])
def test_what_is_half_made_is_gone_on_with_for_the_same_inputs_only(
    steps: Steps, inputs: str, goes_on: bool
) -> None:
    """An evaluation's answers lie there, and nothing in them tells two checkpoints at one path apart."""

    def interrupt(_: Path) -> None:
        (steps.folder / "out.partial").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run_step(steps, "a", interrupt)
    found: list[bool] = []
    run_step(steps, inputs, lambda _: found.append((steps.folder / "out.partial").exists()))
    assert found == [goes_on]


def test_a_step_whose_result_is_gone_is_redone(steps: Steps) -> None:
    run_step(steps, "a")
    (steps.folder / "out" / "done").unlink()
    run_step(steps, "a")
    assert (steps.folder / "out" / "done").exists()


@pytest.mark.parametrize(("cause", "code"), [(EndpointError, 2), (VerificationError, 1)])
def test_a_failure_is_kept_with_its_reason_and_exit_code(
    steps: Steps, cause: type[Exception], code: int
) -> None:
    def fail(result: Path) -> None:
        result.touch()
        raise cause("the server went away")

    with pytest.raises(StepError, match="Variant v, step export: the server went away") as caught:
        run_step(steps, "a", fail)
    assert caught.value.exit_code == code
    kept = State.model_validate_json((steps.folder / "campaign.json").read_text())
    assert kept.variants[0].steps["export"].error == "the server went away"
    run_step(steps, "a")


def test_an_interrupted_step_is_redone(steps: Steps) -> None:
    def interrupt(result: Path) -> None:
        result.touch()
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="variant v, step export"):
        run_step(steps, "a", interrupt)
    done: list[Path] = []
    run_step(steps, "a", done.append)
    assert done


def test_a_replaced_file_changes_the_stamp(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("one")
    before = stamp(tmp_path)
    assert stamp(tmp_path) == before
    (tmp_path / "weights").write_text("other")
    assert stamp(tmp_path) != before


def test_an_unknown_task_is_refused_before_anything_begins(tiny_llama: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    variants = "variants: [{name: v, scheme: W8A16, method: rtn}]"
    plan.write_text(f"model: {tiny_llama}\n{variants}\neval: {{tasks: [no_such_task]}}\n")
    with pytest.raises(UsageError, match="no_such_task"):
        run_campaign(plan, tmp_path / "campaign")
    assert not (tmp_path / "campaign").exists()
