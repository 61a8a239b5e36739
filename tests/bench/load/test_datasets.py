"""Prompts from files, and the conversations that are held with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.load.run import measure
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.workload.datasets import read_dataset
from qdeploy.bench.load.workload.traces import read_trace
from qdeploy.errors import UsageError
from tests.bench.load.server import Server

TALK = [("human", "one"), ("gpt", "two"), ("human", "three"), ("gpt", "four"), ("human", "five")]
SHAREGPT = {"id": "a", "conversations": [{"from": who, "value": text} for who, text in TALK]}
ROLES = {"human": "user", "gpt": "assistant"}
OPENAI = {"messages": [{"role": ROLES[who], "content": text} for who, text in TALK]}


def write(folder: Path, rows: list[Any], as_lines: bool = False) -> Path:
    path = folder / "data.json"
    path.write_text("\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows))
    return path


@pytest.mark.parametrize("as_lines", [True, False])
@pytest.mark.parametrize("row", [SHAREGPT, OPENAI])
def test_a_conversation_asks_with_all_that_was_said_before(
    tmp_path: Path, row: dict[str, Any], as_lines: bool
) -> None:
    [found] = read_dataset(write(tmp_path, [row], as_lines))
    assert [[m["content"] for m in prompt] for prompt in found.prompts(9)] == [
        ["one"],
        ["one", "two", "three"],
        ["one", "two", "three", "four", "five"],
    ]
    assert [m["role"] for m in found.prompts(2)[1]] == ["user", "assistant", "user"]
    assert len(found.prompts(2)) == 2


@pytest.mark.parametrize("key", ["prompt", "question", "instruction", "input", "text"])
def test_any_row_with_a_prompt_and_the_length_of_its_answer(tmp_path: Path, key: str) -> None:
    found = read_dataset(write(tmp_path, [{key: "hello", "output_length": 7}, {"turns": ["hi", "more"]}]))
    assert [c.prompts(1)[0][0]["content"] for c in found] == ["hello", "hi"]
    assert [c.output_tokens for c in found] == [7, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"prompt": "a"}, {"answer": "b"}]', "row 2 of .* holds no prompt"),
        ('[{"prompt": "a"}, 3]', "row 2 of .* holds no prompt"),
        ('[{"messages": [{"role": "user", "content": [1]}]}]', "row 1 .*no text"),
        ('{"prompt": "a"}\n{', "cannot read"),
        ("", "holds no prompt"),
        ('[{"conversations": [{"from": "gpt", "value": "a"}]}]', "holds no prompt"),
    ],
)
def test_what_holds_no_prompt_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_dataset(tmp_path / "data.json")


def asked(server: Server) -> list[list[dict[str, str]]]:
    return [body["messages"] for body in server.payloads if body["max_tokens"] > 1]


@pytest.mark.parametrize("load", [{"concurrency": 3}, {"rate": 60.0}])
def test_turns_follow_one_another(server: Server, tmp_path: Path, load: dict[str, Any]) -> None:
    server.behaviour.first_token_s = 0.02
    path = write(tmp_path, [SHAREGPT])
    spec = LoadSpec(**load, dataset=str(path), turns=3, requests=8, output_tokens=4, warmup=0)
    found = measure(spec, server.url)
    assert found.target.dialect.chat
    by_session: dict[str, list[int]] = {}
    for messages in asked(server):
        by_session.setdefault(messages[0]["content"], []).append(len(messages))
    assert sorted(by_session.values()) == [[1, 3], [1, 3, 5], [1, 3, 5]]
    for first, second in ((0, 1), (1, 2), (3, 4), (4, 5), (6, 7)):
        assert found.outcomes[second].dispatched_ns >= found.outcomes[first].end_ns
        assert found.outcomes[second].scheduled_ns == found.outcomes[first].end_ns


def test_prompts_of_a_dataset_differ_within_a_run_and_between_runs(server: Server, tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "same"}])
    spec = {"concurrency": 2, "dataset": str(path), "requests": 5, "output_tokens": 3, "warmup": 0}
    runs = [measure(LoadSpec(**spec), server.url).result for _ in range(2)]
    texts = [messages[0]["content"] for messages in asked(server)]
    assert len(set(texts)) == 10
    assert all(text.endswith("] same") for text in texts)
    assert runs[0].prompts_sha256 != runs[1].prompts_sha256
    again = [measure(LoadSpec(**spec, salt="ab"), server.url).result.prompts_sha256 for _ in range(2)]
    assert again[0] == again[1]


def test_dataset_on_the_completions_route(server: Server, tmp_path: Path) -> None:
    path = write(tmp_path, [{"prompt": "same"}])
    spec = LoadSpec(
        concurrency=1, dataset=str(path), chat=False, requests=2, output_tokens=3, warmup=0, salt="ab"
    )
    measure(spec, server.url)
    assert [b["prompt"] for b in server.payloads if b["max_tokens"] > 1] == ["[ab-0] same", "[ab-1] same"]


@pytest.mark.skipif(not os.environ.get("QDEPLOY_TEST_DATA"), reason="QDEPLOY_TEST_DATA names no folder")
def test_real_files() -> None:
    data = Path(os.environ["QDEPLOY_TEST_DATA"])
    for name, count in (("code", 8819), ("conv", 19366)):
        trace = read_trace(data / f"traces_azure_llm/AzureLLMInferenceTrace_{name}.csv", 10**6)
        assert len(trace) == count
        assert trace[0].at_s == 0
        assert 3400 < trace[-1].at_s < 3600
    assert len(read_dataset(data / "sharegpt_subset/ShareGPT_V3_filtered_500.json")) == 500
    assert len(read_dataset(data / "mt_bench/question.jsonl")) == 80
