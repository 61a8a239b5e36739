"""Log-probabilities of a prompt's own tokens, as servers write them in `/v1/completions` answers."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.errors import EndpointError

CLAMP = -9999.0
"""What vLLM writes for −inf, which JSON cannot hold."""

Row = dict[str, dict[str, Any]]
"""Of a position: token id → logprob, rank, decoded_token."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model thinks of one token sequence of length T.

    Attributes:
        token_ids: [T], the sequence.
        token_logprobs: [T], ln p(token t | tokens before t), nats; None at t = 0, which nothing predicts, and
            before the position from which on they were asked for.
        top: [T], token id → ln p of the k likeliest tokens at each position, likeliest first; {} at t = 0.
            None when they were not asked for.
        chosen: float32 [R, K], ln p of the token ids that were asked for at the last R positions, nats; None
            when none were.
        clamped: how many of `token_logprobs` stand for −inf (the server writes −9999).
        greedy: [T], whether each token is the likeliest one at its place; None where that was not asked for.
        cached: how many tokens at the beginning the server did not compute, where only the end was asked for.
    """

    token_ids: list[int]
    token_logprobs: list[float | None]
    top: list[dict[int, float]] | None = None
    clamped: int = 0
    chosen: NDArray[np.float32] | None = None
    greedy: list[bool] | None = None
    cached: int = 0

    def total(self, start: int = 1) -> float:
        """Sum of the log-probabilities from position `start` on; position 0 counts nothing."""
        return sum(value for value in self.token_logprobs[start:] if value is not None)

    def is_greedy(self, start: int) -> bool | None:
        """Whether greedy decoding would write every token from `start` on; None where that is not known."""
        return all(self.greedy[start:]) if self.greedy is not None else None


@dataclass(frozen=True, slots=True)
class NextToken:
    """What a model would write next.

    Attributes:
        likeliest: the token that greedy decoding writes.
        logprobs: token id → ln p, nats, of the tokens that the server told of.
    """

    likeliest: int
    logprobs: dict[int, float]


def from_prompt_logprobs(token_ids: Sequence[int], choice: dict[str, Any], top_k: int) -> Scores:
    """Read vLLM's `prompt_logprobs`: per position {token id: {logprob, rank, decoded_token}}.

    The ids are the keys: decoded strings collide (all byte fragments decode to U+FFFD) and would lose mass.

    Raises:
        EndpointError: there are none, or they are those of another sequence.
    """
    rows = choice.get("prompt_logprobs")
    if not rows or len(rows) != len(token_ids):
        raise missing_logprobs(len(rows or ()), len(token_ids), "prompt_logprobs")
    chosen = [None, *_own(token_ids, rows, 1)]
    top = [{}, *(_likeliest(row, top_k) for row in rows[1:])]
    return Scores(list(token_ids), chosen, top, _clamped(chosen))


def from_end(token_ids: Sequence[int], answer: dict[str, Any], start: int, greedy: bool) -> Scores | None:
    """Read from position `start` on the `prompt_logprobs` of a request whose beginning may have been cached.

    Of positions that it had in its cache, the server has computed nothing: their rows are missing (vLLM's V2
    runner) or hold what was in memory before (V1), so none of them is looked at.

    Returns:
        None where the cache reached into what was to be scored, or the server does not say how far it did.

    Raises:
        EndpointError: the rows are those of another sequence.
    """
    details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
    cached, count = details.get("cached_tokens"), len(token_ids) - start
    rows = list(answer.get("prompt_logprobs") or ())[-count:]
    if cached is None or cached >= start or len(rows) < count:
        return None
    own = _own(token_ids, rows, start)
    best = [value == _highest(row) for value, row in zip(own, rows, strict=True)] if greedy else None
    return Scores(
        list(token_ids),
        [*[None] * start, *own],
        clamped=_clamped(own),
        greedy=[True] * start + best if best else None,
        cached=int(cached),
    )


def from_generate(
    token_ids: Sequence[int], answer: dict[str, Any], top_k: int, shape: tuple[int, int]
) -> Scores:
    """Read the answer of vLLM's `/inference/v1/generate` to `prompt_logprob_token_ids` of `shape` [R, K].

    The log-probabilities are an `.npy` file in base64.

    Raises:
        EndpointError: there are none, or of another shape.
    """
    scores = from_prompt_logprobs(token_ids, answer, top_k)
    try:
        data = base64.b64decode(answer.get("prompt_token_id_logprobs") or "", validate=True)
        chosen = np.load(io.BytesIO(data), allow_pickle=False)
    except (binascii.Error, EOFError, ValueError) as error:
        raise EndpointError(
            f"The endpoint returns no log-probabilities of chosen tokens: {error}."
        ) from error
    if chosen.shape != shape or chosen.dtype.kind != "f" or np.isnan(chosen).any():
        raise EndpointError(
            f"The endpoint's log-probabilities of chosen tokens are {chosen.dtype}{list(chosen.shape)}, some "
            f"may be NaN; float32{list(shape)} was asked for."
        )
    return replace(scores, chosen=chosen.astype(np.float32))


def from_echo(token_ids: Sequence[int], choice: dict[str, Any], greedy: bool = False) -> Scores:
    """Read `logprobs.token_logprobs` of a request with `echo`; generated tokens behind the prompt are cut.

    Args:
        greedy: also read `logprobs.top_logprobs`, which must list the likeliest token of each position.

    Raises:
        EndpointError: there are none for the prompt, or they are those of another sequence.
    """
    logprobs = choice.get("logprobs") or {}
    values = list(logprobs.get("token_logprobs") or ())[: len(token_ids)]
    if len(values) != len(token_ids) or values[0] is not None or None in values[1:]:
        scored = sum(value is not None for value in values)
        raise missing_logprobs(scored, len(token_ids) - 1, "logprobs with echo")
    for position, (token, written) in enumerate(zip(token_ids, logprobs.get("tokens") or (), strict=False)):
        if str(written).startswith("token_id:") and written != f"token_id:{token}":
            raise _other_sequence(position, token)
    likeliest = _greedy(values, logprobs) if greedy else None
    return Scores(list(token_ids), values, None, _clamped(values), greedy=likeliest)


def _greedy(values: Sequence[float | None], logprobs: dict[str, Any]) -> list[bool]:
    """Which tokens are as likely as the likeliest listed beside them; lm-eval's rule."""
    top = list(logprobs.get("top_logprobs") or ())[1 : len(values)]
    if len(top) != len(values) - 1 or not all(top):
        raise missing_logprobs(sum(map(bool, top)), len(values) - 1, "top_logprobs with echo")
    likeliest = [max(listed.values()) for listed in top]
    return [True, *(value == best for value, best in zip(values[1:], likeliest, strict=True))]


def from_completion(choice: dict[str, Any]) -> NextToken:
    """Read the log-probabilities of the first generated token, written as `token_id:N`.

    Raises:
        EndpointError: there are none.
    """
    logprobs = choice.get("logprobs") or {}
    tokens, top = logprobs.get("tokens") or [""], (logprobs.get("top_logprobs") or [None])[0]
    found = {_token_id(name): float(value) for name, value in (top or {}).items()}
    likeliest = _token_id(str(tokens[0]))
    if likeliest is None or not found or None in found:
        raise EndpointError(
            "The endpoint gives no log-probabilities, by token id, of the token that it generates: "
            f"{str(logprobs)[:200]}"
        )
    return NextToken(likeliest, {token: value for token, value in found.items() if token is not None})


def _token_id(written: str) -> int | None:
    number = written.removeprefix("token_id:")
    return int(number) if number != written and number.isdecimal() else None


def missing_logprobs(found: int, wanted: int, field: str) -> EndpointError:
    """The error of an endpoint that answers, but without the prompt's log-probabilities."""
    return EndpointError(
        f"The endpoint returns no log-probabilities of prompt tokens: asked for {field} of {wanted} tokens, "
        f"got {found}. Log-likelihood tasks and perplexity need them; serve the model with vLLM."
    )


def _own(token_ids: Sequence[int], rows: Sequence[Row | None], start: int) -> list[float]:
    """The log-probability of each token from `start` on; the last row is the last token's."""
    found = []
    for position in range(start, len(token_ids)):
        row, token = rows[position - len(token_ids)], token_ids[position]
        if row is None or str(token) not in row:
            raise _other_sequence(position, token)
        found.append(float(row[str(token)]["logprob"]))
    return found


def _highest(row: Row) -> float:
    return max(float(entry["logprob"]) for entry in row.values())


def _likeliest(row: Row, top_k: int) -> dict[int, float]:
    """The first `top_k` by log-probability: the actual token comes along as an extra, and goes here."""
    ranked = sorted(row.items(), key=lambda item: -item[1]["logprob"])[:top_k]
    return {int(token): float(entry["logprob"]) for token, entry in ranked}


def _clamped(values: Sequence[float | None]) -> int:
    return sum(value is not None and value <= CLAMP for value in values)


def _other_sequence(position: int, token: int) -> EndpointError:
    return EndpointError(
        f"The endpoint scored another token sequence than the one sent: token {token} at position {position} "
        "is missing from its answer. It probably prepends a BOS token of its own; serve with vLLM."
    )
