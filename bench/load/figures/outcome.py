"""From a recorded stream to one row of `requests.parquet`."""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.client.sse import Event, parse_events
from qdeploy.bench.load.client.wire import MALFORMED, MalformedError, decoded

TEXT_KEYS = ("content", "reasoning_content", "reasoning", "tool_calls")


@dataclass(slots=True)
class Outcome:
    """One measured request. Times are monotonic ns from the start of the run; None where not reached.

    `chunk_ns` are the arrivals of the chunks that carry tokens, `chunk_tokens` how many each carries, None
    where the server does not say. Without an `error` the measurement is complete.
    """

    index: int
    scheduled_ns: int
    dispatched_ns: int
    sent_ns: int | None
    headers_ns: int | None
    end_ns: int
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    chunk_ns: list[int] = field(default_factory=list)
    chunk_tokens: list[int] | None = None
    error: str | None = None
    detail: str | None = None


@dataclass(slots=True)
class _Stream:
    """What the events of one stream add up to."""

    usage: dict[str, Any] | None = None
    ends: list[int] = field(default_factory=list)
    tokens: list[int] | None = field(default_factory=list)
    counted: int = 0
    error: str | None = None
    detail: str | None = None


def read_outcome(exchange: Exchange, start_ns: int, streamed: bool = True) -> Outcome:
    """Parse the recorded answer to `exchange`, a stream or one JSON object; `start_ns` becomes time 0.

    A chunk carries tokens if its running usage count rose, or, where the server sends none, if it has text
    (content, reasoning or tool call). Role-only and usage-only chunks carry none. Of an answer that is not
    streamed only the last token's time is known.
    """
    outcome = Outcome(
        index=exchange.index,
        scheduled_ns=exchange.scheduled_ns - start_ns,
        dispatched_ns=exchange.dispatched_ns - start_ns,
        sent_ns=exchange.sent_ns - start_ns if exchange.sent_ns else None,
        headers_ns=exchange.headers_ns - start_ns if exchange.headers_ns else None,
        end_ns=exchange.end_ns - start_ns,
        error=exchange.error,
        detail=exchange.detail,
    )
    try:
        body, read_ends = decoded(exchange)
    except MalformedError as error:
        outcome.error, outcome.detail = outcome.error or MALFORMED, outcome.detail or str(error)
        return outcome
    stream = _read_stream(body) if streamed else _read_whole(body)
    outcome.chunk_ns = [exchange.read_ns[bisect_left(read_ends, e)] - start_ns for e in stream.ends]
    outcome.chunk_tokens = stream.tokens
    _fill(outcome, stream)
    if not streamed:
        outcome.first_token_ns, outcome.chunk_ns = None, []
    return outcome


def _fill(outcome: Outcome, stream: _Stream) -> None:
    if outcome.chunk_ns:
        outcome.first_token_ns, outcome.last_token_ns = outcome.chunk_ns[0], outcome.chunk_ns[-1]
    if stream.usage:
        outcome.prompt_tokens = stream.usage.get("prompt_tokens")
        outcome.output_tokens = stream.usage.get("completion_tokens")
        outcome.cached_tokens = (stream.usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    if outcome.error is None and stream.error:
        outcome.error, outcome.detail = stream.error, stream.detail
    if outcome.error is None and outcome.output_tokens is None:
        outcome.error = "no usage in the stream"
    if outcome.error is None and not outcome.chunk_ns:
        outcome.error = "no tokens"


def _read_stream(body: bytes) -> _Stream:
    stream = _Stream()
    for event in parse_events(body):
        if event.data.strip() == b"[DONE]":
            break
        message = _decode(event.data)
        if message is None:
            stream.error, stream.detail = "malformed event", event.data[:200].decode(errors="replace")
            break
        if event.type == "error" or message.get("error"):
            stream.error, stream.detail = "error in the stream", json.dumps(message)[:500]
            break
        _add(stream, event, message)
    return stream


def _read_whole(body: bytes) -> _Stream:
    """An answer in one piece, as a stream whose only chunk ends with the body."""
    message = _decode(body)
    if message is None:
        return _Stream(error="malformed answer", detail=body[:200].decode(errors="replace"))
    if message.get("error"):
        return _Stream(error="error in the answer", detail=json.dumps(message)[:500])
    return _Stream(usage=message.get("usage"), ends=[len(body)], tokens=None)


def _decode(data: bytes) -> dict[str, Any] | None:
    """The JSON object in `data`, None if it holds anything else."""
    try:
        message = json.loads(data)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _add(stream: _Stream, event: Event, message: dict[str, Any]) -> None:
    """Add one chunk. Usage beside text on every chunk is a running count; on one alone it is the total."""
    usage, choices = message.get("usage"), message.get("choices") or []
    stream.usage = usage or stream.usage
    has_text = any(_text(choice) for choice in choices)
    if not choices:
        return
    if usage and stream.tokens is not None:
        new = usage.get("completion_tokens", 0) - stream.counted
        if new > 0:
            stream.ends.append(event.end)
            stream.tokens.append(new)
            stream.counted += new
    elif has_text:
        stream.ends.append(event.end)
        stream.tokens = None


def _text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    return bool(choice.get("text")) or any(delta.get(key) for key in TEXT_KEYS)
