"""Every type of task: the same prompts, scores and figures as lm-eval's own models give.

lm-eval runs twice: `local-completions` asks the same server, `hf` holds the same weights in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.accuracy.asking import NO_SHORTCUTS, Shortcuts
from qdeploy.bench.accuracy.comparison import pair, task_scores
from qdeploy.bench.accuracy.encoding import encode_item
from qdeploy.bench.accuracy.harness import harness_tasks
from qdeploy.bench.accuracy.items import Task
from qdeploy.bench.accuracy.journal import Journal
from qdeploy.bench.accuracy.scoring import ItemScore, score_items
from qdeploy.bench.accuracy.totals import task_figures
from qdeploy.bench.tokenizer import Encoder
from tests.bench.accuracy.conftest import Ask, AskedServer, client, write_task

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")  # of lm-eval[api]
pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = Shortcuts(listed=True, block=8)
QUESTIONS = [
    {"q": "the color of snow?", "choices": ["black", "white"], "a": 1, "b": [0, 1]},
    {"q": "the color of coal? ", "choices": ["black", "dark red"], "a": 0, "b": [0]},
    {"q": "the color of grass?", "choices": ["red", "green", "blue"], "a": 1, "b": [1, 2]},
    {"q": "the size of a mouse?", "choices": ["small", "big"], "a": 0, "b": [0]},
]
BLANKS = [
    {"options": ["The cat", "The dog"], "rest": "chased the mouse.", "a": 0},
    {"options": ["Snow", "Coal"], "rest": "is black.", "a": 1},
]
TEXTS = [{"text": "It rained. " * 40}, {"text": "Two words"}]
SUMS = [{"q": "1 + 1 =", "a": "#### 2"}, {"q": "2 + 2 =", "a": "#### 4"}]
MEAN = {"aggregation": "mean", "higher_is_better": True}
FILTERS = [
    {"name": "strict", "filter": [
        {"function": "regex", "regex_pattern": "(..)"}, {"function": "take_first"},
    ]},
    {"name": "loose", "filter": [
        {"function": "regex", "regex_pattern": "(.)", "group_select": -1}, {"function": "take_first"},
    ]},
]  # fmt: skip
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "choices": (QUESTIONS, {
        "output_type": "multiple_choice", "doc_to_text": "Q: {{q}}\nA:", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": m, **MEAN} for m in ("acc", "acc_norm", "acc_bytes", "exact_match")],
    }),
    "shots": (QUESTIONS, {
        "output_type": "multiple_choice", "doc_to_text": "Q: {{q}}\nA:", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{a}}", "num_fewshot": 2, "fewshot_split": "test", "description": "Colors.\n\n",
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "f1", **MEAN, "aggregation": "f1"}],
    }),
    "inputs": (BLANKS, {
        "output_type": "multiple_choice", "doc_to_text": "{{a}}", "doc_to_choice": "{{options}}",
        "doc_to_target": "{{rest}}", "metric_list": [{"metric": "acc", **MEAN}],
    }),
    "targets": (QUESTIONS, {
        "output_type": "multiple_choice", "doc_to_text": "Q: {{q}}\nA:", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{b}}", "metric_list": [{"metric": "acc", **MEAN}],
    }),
    "information": (QUESTIONS, {
        "output_type": "multiple_choice", "doc_to_text": "Q: {{q}}\nA:", "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{a}}",
        "metric_list": [{"metric": "acc", **MEAN}, {"metric": "acc_mutual_info", **MEAN}],
    }),
    "last_word": (QUESTIONS, {
        "output_type": "loglikelihood", "doc_to_text": "{{q}}", "doc_to_target": "{{' ' + choices[0]}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                        {"metric": "acc", **MEAN}],
    }),
    "rolling": (TEXTS, {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
        "metric_list": [{"metric": m, "aggregation": a, "higher_is_better": False} for m, a in (
            ("word_perplexity", "weighted_perplexity"), ("byte_perplexity", "weighted_perplexity"),
            ("bits_per_byte", "bits_per_byte"))],
    }),
    "sums": (SUMS, {
        "output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "repeats": 1,
        "generation_kwargs": {"until": ["\n\n", "Q:"], "do_sample": False, "max_gen_toks": 6},
        "filter_list": FILTERS, "metric_list": [{"metric": "exact_match", **MEAN, "ignore_case": True}],
    }),
}  # fmt: skip


@dataclass
class Run:
    task: Task
    scores: list[ItemScore]
    server: AskedServer

    def figures(self) -> dict[str, float]:
        """Every figure of the task, by lm-eval's names."""
        pairs = pair(self.task, self.scores, None)
        shares = {score.metric: score.accuracy.value for score in task_scores(self.task, pairs, 0.01)}
        return shares | {figure.metric: figure.value.value for figure in task_figures(self.task, pairs)}


def _ours(path: Path, ask: Ask, encoder: Encoder, journal: Journal, shortcuts: Shortcuts = QUICK) -> Run:
    server = ask()
    [task] = harness_tasks(str(path), None)
    with client(server) as endpoint:
        items = [encode_item(encoder, item, server.max_model_len) for item in task.items]
        return Run(task, score_items(endpoint, [(task, items)], 2, journal, shortcuts), server)


def _theirs(path: Path, model: Any) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    task = list(TaskManager(include_defaults=False).load(str(path))["tasks"].values())
    found = lm_eval.simple_evaluate(model, tasks=task, bootstrap_iters=0, log_samples=True)
    assert found is not None
    return dict(found)


def _figures(found: dict[str, Any], name: str) -> dict[str, float]:
    figures = {key: value for key, value in found["results"][name].items() if isinstance(value, int | float)}
    return {
        key.removesuffix(",none"): float(value)
        for key, value in figures.items()
        if "_stderr" not in key and "," in key
    }


@pytest.fixture(params=CASES)
def path(request: pytest.FixtureRequest, hub: Path) -> Path:
    docs, config = CASES[request.param]
    return write_task(hub, docs, task=request.param, **config)


@pytest.mark.parametrize("shortcuts", [NO_SHORTCUTS, QUICK], ids=["plain", "quick"])
def test_same_as_local_completions(
    path: Path, ask: Ask, encoder: Encoder, journal: Journal, folder: Path, shortcuts: Shortcuts
) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    run, other = _ours(path, ask, encoder, journal, shortcuts), ask()
    model = LocalCompletionsAPI(
        base_url=f"{other.url}/completions", model="tiny", tokenizer=str(folder),
        tokenizer_backend="huggingface", max_length=other.max_model_len,
    )  # fmt: skip
    theirs = _figures(_theirs(path, model), path.stem)
    assert _prompts(run.server) == _prompts(other)
    assert run.figures() == pytest.approx(theirs, rel=1e-6)


def _prompts(server: AskedServer) -> set[tuple[tuple[int, ...], bool]]:
    """Token ids and whether they were scored or gone on from."""
    prompts = [(body["prompt"], bool(body.get("echo"))) for body in server.asked]
    return {(tuple(p[0] if isinstance(p[0], list) else p), echo) for p, echo in prompts}


# What the tiny model writes are mostly tokens that its tokenizer lacks, and the server leaves these out.
@pytest.mark.parametrize("path", sorted(CASES.keys() - {"sums"}), indirect=True)
def test_same_as_fp32_hugging_face(
    path: Path, ask: Ask, encoder: Encoder, journal: Journal, model: Any
) -> None:
    from lm_eval.models.huggingface import HFLM

    run = _ours(path, ask, encoder, journal)
    # Windows of a rolling text are as long as this; over HTTP, where a token is generated, two shorter.
    length = run.server.max_model_len - 2
    hf = HFLM(pretrained=model, tokenizer=encoder.tokenizer, batch_size=1, max_length=length)
    found = _theirs(path, hf)
    assert run.figures() == pytest.approx(_figures(found, path.stem), rel=1e-3)
    samples = {str(sample["doc_id"]): sample for sample in found["samples"][path.stem]}
    for score in run.scores:
        answers = [response[0] for response in samples[score.doc_id]["resps"]]
        exact = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
        tokens = sum(len(str(argument)) for argument in samples[score.doc_id]["arguments"])
        assert score.loglikelihoods == pytest.approx(exact, abs=1e-4 * tokens)
