"""Whole runs: stopped ones go on, and what is measured is in the record, the table and the comparison."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from qdeploy.bench.accuracy.scoring import JOURNAL
from qdeploy.bench.accuracy.table import read_items
from qdeploy.bench.evaluation import EvalSettings, run_eval
from qdeploy.bench.records import load_record
from qdeploy.bench.render import render_eval
from qdeploy.errors import EndpointError
from tests.bench.accuracy.conftest import Ask, client, write_task
from tests.bench.accuracy.test_parity import CASES

pytestmark = pytest.mark.filterwarnings("ignore")
SETTINGS = EvalSettings(text=None, limit=12, concurrency=2)


def test_a_run_whose_engine_dies_goes_on_with_the_same_call(tmp_path: Path, ask: Ask) -> None:
    whole, dying = ask(), ask()
    with client(whole) as endpoint:
        expected = run_eval(endpoint, SETTINGS, tmp_path / "whole")
    requests = _scorings(whole.asked)
    dying.dies_after = len(whole.asked) - requests // 2
    with client(dying) as endpoint, pytest.raises(EndpointError):
        run_eval(endpoint, SETTINGS, tmp_path / "run")
    kept = len((tmp_path / "run.partial" / JOURNAL).read_text().splitlines()) - 1
    assert 0 < kept < requests
    again = ask()
    with client(again) as endpoint:
        record = run_eval(endpoint, SETTINGS, tmp_path / "run")
    assert _scorings(again.asked) == requests - kept
    assert record.tasks == expected.tasks
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "items.parquet"}
    assert not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize("part", [0.2, 0.45, 0.7, 0.95])
def test_nothing_is_asked_twice_wherever_the_engine_dies(tmp_path: Path, ask: Ask, part: float) -> None:
    """In the text, in the tasks, and in either of the second measurement."""
    settings = EvalSettings(windows=8, window_tokens=32, top_k=8, limit=8, concurrency=2, noise=True)
    whole, dying, again = ask(), ask(), ask()
    with client(whole) as endpoint:
        expected = run_eval(endpoint, settings, tmp_path / "whole")
    requests = _scorings(whole.asked)
    dying.dies_after = len(whole.asked) - requests + int(requests * part)
    with client(dying) as endpoint, pytest.raises(EndpointError, match=r"is kept; the same command goes on"):
        run_eval(endpoint, settings, tmp_path / "run")
    with client(again) as endpoint:
        record = run_eval(endpoint, settings, tmp_path / "run")
    # Of the requests in flight, one answer may come after the failure of the other.
    assert _scorings(dying.asked) + _scorings(again.asked) <= requests + 1
    assert record.tasks == expected.tasks
    assert record.fidelity == expected.fidelity
    assert record.noise and not (tmp_path / "run" / "windows").exists()


def _scorings(asked: list[dict[str, object]]) -> int:
    """Requests behind the probe's, which are of token ids that the byte tokenizer lacks."""
    prompts = [body.get("prompt") for body in asked]
    return sum(max(prompt) < 258 for prompt in prompts if isinstance(prompt, list))


def test_figures_are_recorded_compared_and_shown(hub: Path, ask: Ask) -> None:
    pytest.importorskip("lm_eval")
    names = ("rolling", "sums", "shots")
    files = [str(write_task(hub, CASES[name][0], task=name, **CASES[name][1])) for name in names]
    settings = EvalSettings(text=None, tasks=tuple(files), concurrency=2)
    with client(ask()) as endpoint:
        run_eval(endpoint, settings, hub / "before")
    with client(ask()) as endpoint:
        record = run_eval(endpoint, settings, hub / "after", hub / "before")
    assert load_record(hub / "after") == record
    figures = {figure.metric: figure for figure in record.figures}
    assert figures.keys() == {"word_perplexity", "byte_perplexity", "bits_per_byte", "f1"}
    assert all(f.difference is not None and f.difference.value == 0 for f in figures.values())
    assert figures["word_perplexity"].lower_is_better and not figures["f1"].lower_is_better
    assert {score.metric for score in record.tasks} == {"exact_match,strict", "exact_match,loose", "acc"}
    assert all(score.flips is not None and score.flips.value == 0 for score in record.tasks)
    responses = [item.response for item in read_items(hub / "after") if item.task == "sums"]
    assert len(responses) == 2 and all(isinstance(response, str) for response in responses)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render_eval(record))
    assert "word_perplexity ↓" in capture.get()
