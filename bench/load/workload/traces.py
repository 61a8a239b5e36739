"""Recorded traffic to replay: when requests came and how long they and their answers were.

Read are Azure's LLM inference traces of 2023 and 2024 (CSV), BurstGPT (CSV), Mooncake (JSONL, whose prompts
share prefixes) and a plain JSONL with one object a line:

    {"at_s": 0.25, "prompt_tokens": 512, "output_tokens": 64, "blocks": [7, 8]}

`blocks` may be left out. Blocks of the same number are the same 512 tokens, so that prompts which open with
the same blocks share that prefix, as in Mooncake's `hash_ids`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from qdeploy.errors import UsageError

BLOCK_TOKENS = 512
"""Tokens of a block, as Mooncake hashes them (Qin et al., arXiv 2407.00079, section 4)."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: seconds since the first one, lengths in tokens, the blocks that its prompt is made of."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of trace: the fields that tell it from others, and how one row is read."""

    name: str
    fields: frozenset[str]
    read: Callable[[dict[str, Any]], TraceRequest]


def _azure(row: dict[str, Any]) -> TraceRequest:
    time = datetime.fromisoformat(row["TIMESTAMP"])
    seconds = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return TraceRequest(seconds, int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _burstgpt(row: dict[str, Any]) -> TraceRequest:
    return TraceRequest(float(row["Timestamp"]), int(row["Request tokens"]), int(row["Response tokens"]))


def _mooncake(row: dict[str, Any]) -> TraceRequest:
    lengths = int(row["input_length"]), int(row["output_length"])
    return TraceRequest(row["timestamp"] / 1000, *lengths, tuple(map(int, row["hash_ids"])))


def _plain(row: dict[str, Any]) -> TraceRequest:
    blocks = tuple(map(int, row.get("blocks") or ()))
    if min(blocks, default=0) < 0:
        raise ValueError(f"blocks are numbered from 0, got {min(blocks)}")
    return TraceRequest(float(row["at_s"]), int(row["prompt_tokens"]), int(row["output_tokens"]), blocks)


FORMATS = (
    Format("Azure CSV", frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}), _azure),
    Format("BurstGPT CSV", frozenset({"Timestamp", "Request tokens", "Response tokens"}), _burstgpt),
    Format(
        "Mooncake JSONL", frozenset({"timestamp", "input_length", "output_length", "hash_ids"}), _mooncake
    ),
    Format("plain JSONL", frozenset({"at_s", "prompt_tokens", "output_tokens"}), _plain),
)


def read_trace(path: Path, count: int) -> list[TraceRequest]:
    """The first `count` requests that got an answer, in order of time; the first one is at 0.

    Raises:
        UsageError: the file cannot be read, is of no known format, or a row is wrong (its line is named).
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            answered = (r for r in _requests(path, file) if r.prompt_tokens > 0 and r.output_tokens > 0)
            found = sorted(islice(answered, count), key=lambda request: request.at_s)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--trace: cannot read {path}: {error}.") from error
    if len(found) < 2:
        raise UsageError(f"--trace: {path} holds {len(found)} answered requests; a run needs at least 2.")
    return [replace(request, at_s=request.at_s - found[0].at_s) for request in found]


def _requests(path: Path, file: TextIO) -> Iterator[TraceRequest]:
    rows = enumerate(_rows(path, file), 2 if path.suffix == ".csv" else 1)
    first = next(rows, None)
    if first is None:
        return
    known = _format(path, set(first[1]))
    for line, row in chain([first], rows):
        try:
            yield known.read(row)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"--trace: {path} line {line} is no {known.name} row: {error!r}.") from error


def _rows(path: Path, file: TextIO) -> Iterator[dict[str, Any]]:
    if path.suffix == ".csv":
        yield from csv.DictReader(file)
        return
    for number, line in enumerate(file, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"--trace: {path} line {number} is no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UsageError(f"--trace: {path} line {number} is no JSON object: {line[:80]!r}.")
        yield row


def _format(path: Path, fields: set[str]) -> Format:
    for known in FORMATS:
        if known.fields <= fields:
            return known
    formats = "; ".join(f"{known.name} ({', '.join(sorted(known.fields))})" for known in FORMATS)
    raise UsageError(
        f"--trace: {path} is of no known format: its first row has {', '.join(sorted(fields)) or 'nothing'}. "
        f"Known are: {formats}."
    )
