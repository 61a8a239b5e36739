"""Parsing of recorded streams: the same outcome for every way the network cuts them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.client.sse import parse_events
from qdeploy.bench.load.figures.outcome import Outcome, read_outcome


def recorded(reads: list[bytes]) -> Exchange:
    """An exchange whose i-th read arrived at i + 1 ms."""
    exchange = Exchange(0, scheduled_ns=1, dispatched_ns=1, sent_ns=1, headers_ns=1, end_ns=10**12)
    for i, data in enumerate(reads):
        exchange.body += data
        exchange.read_ns.append((i + 1) * 1_000_000)
        exchange.read_ends.append(len(exchange.body))
    return exchange


def outcome(*messages: Any, done: bool = True) -> Outcome:
    reads = [f"data: {json.dumps(m)}\n\n".encode() for m in messages]
    return read_outcome(recorded([*reads, b"data: [DONE]\n\n"] if done else reads), 0)


def text(value: str | None, **usage: int) -> dict[str, Any]:
    return {"choices": [{"text": value}], **({"usage": usage} if usage else {})}


def total(prompt: int, completion: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


STREAM = (
    ": keep-alive\r\n\r\n"
    'data: {"choices":[{"text":"é"}]}\r\n\r\n'
    'data:{"choices":[{"text":"漢字"}]}\n\n'
    'id: 3\nevent: message\ndata: {"choices":\ndata: [{"text":"🙂"}]}\r\r'
    'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
    "data: [DONE]\n\n"
).encode()


def test_events_of_every_line_ending_and_form() -> None:
    events = list(parse_events(STREAM))
    assert [json.loads(e.data)["choices"][0]["text"] for e in events[:3]] == ["é", "漢字", "🙂"]
    assert [STREAM[: e.end].rstrip(b"\r\n").endswith(b"}") for e in events[:4]] == [True] * 4
    assert events[-1].data == b"[DONE]"


@pytest.mark.parametrize("seed", range(20))
def test_any_split_gives_the_same_tokens_at_the_read_that_completed_them(seed: int) -> None:
    rng = random.Random(seed)
    count = len(STREAM) - 1 if seed == 0 else rng.randrange(1, 40)
    cuts = sorted(rng.sample(range(1, len(STREAM)), count))
    reads = [STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
    found = read_outcome(recorded(reads), 0)
    ends = [e.end for e in parse_events(STREAM)][:3]
    complete_at = [next(i for i in range(len(reads)) if sum(map(len, reads[: i + 1])) >= end) for end in ends]
    assert found.chunk_ns == [(i + 1) * 1_000_000 for i in complete_at]
    assert (found.prompt_tokens, found.output_tokens, found.error) == (7, 3, None)


def test_end_of_stream_right_after_the_last_data() -> None:
    whole = f"data: {json.dumps(text('a'))}\n\ndata: {json.dumps(total(1, 1))}".encode()
    assert read_outcome(recorded([whole]), 0).output_tokens == 1


def test_role_null_and_usage_chunks_are_not_tokens() -> None:
    role = {"choices": [{"delta": {"role": "assistant", "content": ""}}], "usage": None}
    null = {"choices": [{"delta": {"content": None}}]}
    word = {"choices": [{"delta": {"content": "hi"}}]}
    found = outcome(role, null, word, word, total(4, 2))
    assert found.chunk_ns == [3_000_000, 4_000_000]
    assert found.chunk_tokens is None


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_is_a_first_token(key: str) -> None:
    found = outcome({"choices": [{"delta": {key: "hm"}}]}, text("a"), total(1, 2))
    assert found.first_token_ns == 1_000_000


def test_running_usage_counts_tokens_even_where_text_is_held_back() -> None:
    found = outcome(
        text("", prompt_tokens=5, completion_tokens=0),
        text("a", prompt_tokens=5, completion_tokens=1),
        text("", prompt_tokens=5, completion_tokens=2),
        text("é", prompt_tokens=5, completion_tokens=5),
        text("", prompt_tokens=5, completion_tokens=5),
        total(5, 5),
    )
    assert found.chunk_tokens == [1, 1, 3]
    assert found.chunk_ns == [2_000_000, 3_000_000, 4_000_000]


def test_usage_on_the_last_text_chunk_only_is_a_total_not_a_count() -> None:
    found = outcome(text("a"), text("b"), text("c", prompt_tokens=5, completion_tokens=9))
    assert (found.output_tokens, len(found.chunk_ns), found.chunk_tokens) == (9, 3, None)


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        ([text("a"), {"error": {"message": "cuda"}}], "error in the stream"),
        ([text("a")], "no usage in the stream"),
        ([total(3, 0)], "no tokens"),
        ([text("a"), [1]], "malformed event"),
    ],
)
def test_failures_within_the_stream(messages: list[Any], kind: str) -> None:
    assert outcome(*messages).error == kind


def test_error_event_type_and_broken_json() -> None:
    assert read_outcome(recorded([b'event: error\ndata: {"m": 1}\n\n']), 0).error == "error in the stream"
    assert read_outcome(recorded([b'data: {"choi\n\n']), 0).error == "malformed event"
