"""What is sent, and when: a load's spec made into request bodies and due times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.workload.arrivals import arrival_times
from qdeploy.bench.load.workload.datasets import Message, read_dataset
from qdeploy.bench.load.workload.dialect import Prompt
from qdeploy.bench.load.workload.prompts import BLOCKS, MEASURED, generator
from qdeploy.bench.load.workload.target import Target
from qdeploy.bench.load.workload.traces import BLOCK_TOKENS, TraceRequest, read_trace
from qdeploy.errors import UsageError
from qdeploy.progress import warn


@dataclass(frozen=True)
class Workload:
    """Request bodies in the order of their sessions.

    A session is one user's requests, each sent when the one before has ended; without conversations every
    request is its own. `due_ns` says when sessions begin, from the start of the run; None in a closed loop.
    `repeated_tokens` are those with which a prompt begins as an earlier one did: what a prefix cache may hit,
    turns of conversations not counted. `output_tokens` is what is asked for by all requests together.
    `left_out` requests of a trace do not fit the served context.
    """

    payloads: list[bytes]
    sessions: list[range]
    due_ns: NDArray[np.int64] | None
    prompts_sha256: str
    output_tokens: int = 0
    repeated_tokens: int = 0
    left_out: int = 0


def build(spec: LoadSpec, target: Target) -> Workload:
    """The workload of `spec` in the dialect of `target`. The same spec and salt always make the same prompts.

    Raises:
        UsageError: the trace or the dataset cannot be used.
    """
    if spec.trace:
        return _replay(spec, target, Path(spec.trace))
    if spec.dataset:
        return _from_dataset(spec, target, Path(spec.dataset))
    rng = generator(spec.seed, spec.salt, MEASURED)
    prompts = target.material.draw([spec.prompt_tokens] * spec.requests, rng)
    return _workload(spec, target, [[prompt] for prompt in prompts], [spec.output_tokens] * spec.requests)


def _workload(
    spec: LoadSpec, target: Target, sessions: Sequence[Sequence[Prompt]], output_tokens: Sequence[int]
) -> Workload:
    """Sessions of prompts with the answers' length of each session."""
    ends = np.cumsum([len(session) for session in sessions]).tolist()
    prompts = [prompt for session in sessions for prompt in session]
    lengths = [n for session, n in zip(sessions, output_tokens, strict=True) for _ in session]
    return Workload(
        payloads=[target.dialect.payload(target.model, p, n) for p, n in zip(prompts, lengths, strict=True)],
        sessions=[range(end - len(session), end) for session, end in zip(sessions, ends, strict=True)],
        due_ns=_due(spec, len(sessions)),
        output_tokens=sum(lengths),
        prompts_sha256=hashlib.sha256(json.dumps([prompts, lengths]).encode()).hexdigest(),
    )


def _due(spec: LoadSpec, sessions: int) -> NDArray[np.int64] | None:
    if spec.rate is None:
        return None
    return arrival_times(
        spec.arrival, spec.rate, sessions, spec.seed, end_rate=spec.end_rate, burstiness=spec.burstiness
    )


def _replay(spec: LoadSpec, target: Target, path: Path) -> Workload:
    """Every request of the trace that fits the served context, at its time and with its lengths."""
    trace = read_trace(path, spec.requests)
    limit = target.max_model_len
    fitting = [r for r in trace if limit is None or r.prompt_tokens + r.output_tokens <= limit]
    if len(fitting) < 2:
        raise UsageError(
            f"--trace: of {len(trace)} requests {len(fitting)} fit the served context of {limit} tokens; "
            "a run needs at least 2. Serve a longer context (--max-model-len)."
        )
    if left_out := len(trace) - len(fitting):
        longest = max(r.prompt_tokens + r.output_tokens for r in trace)
        warn(
            f"{left_out} of {len(trace)} requests of {path} are left out: they take up to {longest} tokens, "
            f"and the context served is {limit}."
        )
    prompts = [[prompt] for prompt in _trace_prompts(spec, target, fitting)]
    found = _workload(spec, target, prompts, [r.output_tokens for r in fitting])
    due = np.array([r.at_s - fitting[0].at_s for r in fitting]) * spec.time_scale * 1e9
    return replace(
        found,
        due_ns=np.rint(due).astype(np.int64),
        repeated_tokens=_repeated_tokens(fitting),
        left_out=left_out,
    )


def _trace_prompts(spec: LoadSpec, target: Target, trace: Sequence[TraceRequest]) -> list[Prompt]:
    """Prompts of the lengths of the trace, of the same tokens where it has the same blocks."""
    material, rng = target.material, generator(spec.seed, spec.salt, MEASURED)
    blocks = {
        number: material.block(BLOCK_TOKENS, generator(spec.seed, spec.salt, BLOCKS, number))
        for number in {number for request in trace for number in request.blocks}
    }
    return [material.join([blocks[b] for b in r.blocks], r.prompt_tokens, rng) for r in trace]


def _repeated_tokens(trace: Sequence[TraceRequest]) -> int:
    """Prompt tokens in blocks with which an earlier prompt began, in the same order."""
    seen, total = set[int](), 0
    for request in trace:
        openings = list(accumulate(request.blocks, lambda before, block: hash((before, block))))
        total += min(sum(opening in seen for opening in openings) * BLOCK_TOKENS, request.prompt_tokens)
        seen.update(openings)
    return total


def _from_dataset(spec: LoadSpec, target: Target, path: Path) -> Workload:
    """As many conversations, drawn at random, as make up `spec.requests` requests.

    Each begins with the salt and its number, so that no two prompts begin alike, in this run or another.
    """
    conversations = read_dataset(path)
    order = generator(spec.seed, "0", MEASURED).permutation(len(conversations))
    sessions, lengths, missing = list[list[Prompt]](), list[int](), spec.requests
    while missing:
        conversation = conversations[order[len(sessions) % len(order)]]
        prompts = conversation.prompts(min(spec.turns, missing))
        sessions.append([_salted(p, f"[{spec.salt}-{len(sessions)}] ", target) for p in prompts])
        lengths.append(conversation.output_tokens or spec.output_tokens)
        missing -= len(prompts)
    return _workload(spec, target, sessions, lengths)


def _salted(messages: list[Message], mark: str, target: Target) -> Prompt:
    marked = [{**messages[0], "content": mark + messages[0]["content"]}, *messages[1:]]
    return marked if target.dialect.chat else "\n".join(message["content"] for message in marked)
