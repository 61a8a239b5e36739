from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from qdeploy.bench.accuracy.encoding import encode_item, encode_request
from qdeploy.bench.accuracy.items import Item
from qdeploy.bench.accuracy.scoring import grade, score_items
from qdeploy.bench.accuracy.tasks import load_tasks
from qdeploy.bench.smoke import smoke_suite
from qdeploy.bench.tokenizer import Encoder, encoder_of
from qdeploy.errors import UsageError
from tests.bench.evaluation.conftest import Serve, endpoint, exact_logprobs
from tests.conftest import byte_tokenizer

PAIRS = [
    ("The cat", " sits"),
    ("The cat ", "sits"),
    ("Two  ", " mice\n"),
    ("", "A line"),
    ("", "</s>A"),
    ("x", "é"),
]


@pytest.fixture
def encoder() -> Encoder:
    return encoder_of(byte_tokenizer())


def bos_encoder() -> Encoder:
    tokenizer = byte_tokenizer()
    bos = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[bos])
    return encoder_of(tokenizer)


def test_bos_policy_is_the_tokenizer_s_own(encoder: Encoder) -> None:
    with_bos = bos_encoder()
    assert (encoder.bos, with_bos.bos) == ((), (256,))
    assert with_bos.encode("ab") == [256, *encoder.encode("ab")]
    assert encoder.sha256 != with_bos.sha256


def test_empty_context_is_the_prefix_token(encoder: Encoder) -> None:
    request = encode_request(encoder, "", "ab")
    assert (request.ids, request.start) == ((256, *encoder.encode("ab")), 1)


def test_spaces_move_to_the_continuation(encoder: Encoder) -> None:
    moved, plain = encode_request(encoder, "a  ", "b"), encode_request(encoder, "a", "  b")
    assert moved == plain
    assert moved.start == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [lambda: encoder_of(byte_tokenizer()), bos_encoder])
def test_requests_are_those_of_lm_eval(make: Callable[[], Encoder]) -> None:
    """lm-eval's own `loglikelihood` cuts the same pairs into the same ids at the same border."""
    template = pytest.importorskip("lm_eval.api.model").TemplateLM
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    encoder = make()

    class Recorder(template):  # type: ignore[misc, valid-type]
        eot_token_id = encoder.tokenizer.eos_token_id
        prefix_token_id = encoder.prefix

        def tok_encode(self, text: str, add_special_tokens: bool = True, **_: Any) -> list[int]:
            ids: list[int] = encoder.tokenizer(text, add_special_tokens=add_special_tokens).input_ids
            return ids

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
            return [(tuple(context + continuation), len(context)) for _, context, continuation in requests]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise NotImplementedError

    pairs = [*PAIRS, *(request for item in smoke_suite().items[:40] for request in item.requests)]
    theirs = Recorder().loglikelihood([instance("loglikelihood", {}, pair, 0) for pair in pairs], True)
    ours = [encode_request(encoder, *pair) for pair in pairs]
    assert [(request.ids, request.start) for request in ours] == theirs


def test_scores_are_sums_over_the_continuation(serve: Serve, model: Any, encoder: Encoder) -> None:
    item = Item("0", "c", (("The cat", " sits"), ("The cat", " sat down")), 1, (4, 8))
    encoded = encode_item(encoder, item, 256)
    with endpoint(serve(model)) as client:
        [score] = score_items(client, [("t", [encoded])], 1)
    exact = []
    for request in encoded.requests:
        logprobs = exact_logprobs(model, list(request.ids))
        exact.append(
            sum(float(logprobs[i - 1, request.ids[i]]) for i in range(request.start, len(request.ids)))
        )
    assert score.loglikelihoods == pytest.approx(exact, abs=1e-4)
    assert score.correct == float(exact[1] > exact[0])


def test_a_repeated_request_is_sent_once(serve: Serve, model: Any, encoder: Encoder) -> None:
    server = serve(model)
    items = [
        encode_item(encoder, Item(str(i), "c", (("a", " b"), ("a", " c")), 0, (1, 1)), 256) for i in range(3)
    ]
    with endpoint(server) as client:
        score_items(client, [("t", items)], 2)
    assert len(server.scored) == 2


def test_per_character_scores_can_choose_differently(encoder: Encoder) -> None:
    encoded = encode_item(encoder, Item("0", "c", (("a", " bb"), ("a", " cccc")), 1, (2, 4)), None)
    score = grade("t", encoded, [-3.0, -4.0])
    assert (score.predicted, score.correct, score.correct_norm) == (0, 0.0, 1.0)


def test_too_long_items_are_refused_not_cut(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="holds 16"):
        encode_item(encoder, Item("0", "c", (("a" * 20, " b"), ("a", " c")), 0, (1, 1)), 16)


def test_prompt_hash_follows_ids_and_border(encoder: Encoder) -> None:
    def hash_of(context: str, continuation: str) -> str:
        return encode_item(encoder, Item("0", "c", ((context, continuation),), 0, (1,)), None).prompt_hash

    assert hash_of("ab", " c") == hash_of("ab ", "c")
    assert len({hash_of("ab", " c"), hash_of("ab", " d"), hash_of("a", "b c")}) == 3


YAML = """
task: local_colors
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: {metric}}}, {{metric: acc_norm}}]
metadata: {{version: 1.0}}
"""
DOCS = [
    {"question": "the color of snow?", "choices": ["black", "white"], "answer": 1},
    {"question": "the color of coal?", "choices": ["black", "white"], "answer": 0},
    {"question": "the color of grass?", "choices": ["dark red", "green", "blue"], "answer": 1},
]


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(doc) for doc in DOCS))
    path = tmp_path / "colors.yaml"
    path.write_text(YAML.format(data=data, metric="acc"))
    return path


@pytest.mark.filterwarnings("ignore")
def test_local_yaml_task_scores_as_lm_eval_would(
    task_file: Path, serve: Serve, model: Any, encoder: Encoder
) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    [task] = load_tasks([str(task_file)], limit=None)
    assert task.metrics == ("acc", "acc_norm")
    assert task.items[0].requests[0] == ("Question: the color of snow?\nAnswer:", " black")
    with endpoint(serve(model)) as client:
        scores = score_items(client, [(task.name, [encode_item(encoder, i, 256) for i in task.items])], 2)
    [reference] = tasks.TaskManager(include_defaults=False).load(str(task_file))["tasks"].values()
    for score, doc in zip(scores, reference.eval_docs, strict=True):
        expected = reference.process_results(doc, [(ll, False) for ll in score.loglikelihoods])
        assert (score.correct, score.correct_norm) == (expected["acc"], expected["acc_norm"])


@pytest.mark.filterwarnings("ignore")
def test_limit_takes_the_first_items(task_file: Path) -> None:
    pytest.importorskip("lm_eval")
    [task] = load_tasks([str(task_file)], limit=2)
    assert len(task.items) == 2


@pytest.mark.filterwarnings("ignore")
def test_tasks_that_cannot_be_scored_are_refused(task_file: Path) -> None:
    pytest.importorskip("lm_eval")
    with pytest.raises(UsageError, match="no such file"):
        load_tasks([str(task_file.with_name("other.yaml"))], None)
    task_file.write_text(task_file.read_text().replace("multiple_choice", "generate_until"))
    with pytest.raises(UsageError, match="generate_until"):
        load_tasks([str(task_file)], None)
    task_file.write_text(task_file.read_text().replace("data.jsonl", "missing.jsonl"))
    with pytest.raises(UsageError, match="cannot load it"):
        load_tasks([str(task_file)], None)


def test_missing_lm_eval_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(UsageError, match=r"qdeploy\[eval\]"):
        load_tasks(["arc_easy"], None)
