"""What an endpoint can do, found by asking it for small things before any scoring.

Servers that lack prompt log-probabilities do not refuse: they answer without them, and a log-likelihood task
run on such answers reports chance-level accuracy without an error. Hence the probe.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from qdeploy.engines.endpoint import Endpoint
from qdeploy.errors import EndpointError

PATTERN = (101, 203, 307, 409, 503, 607, 701, 809)
"""Token ids that every vocabulary of a language model has."""

TOP_K = (256, 128, 20, 5)
"""Numbers of log-probabilities per position to ask for; vLLM's own limit is 20."""

BEGINNING = PATTERN * 30 + PATTERN[:1]
"""As long as 15 blocks of 16 tokens, in which caches keep a prompt, and one token more, which must be
computed for the next one to be scored. Of blocks of 32, 64 or 128 it fills an odd number too, so that how
much of it is found in the cache tells the size of a block."""

TOLERANCE = 0.1
"""How far apart two requests for one log-probability may be in 16 bits, nats."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one endpoint can do.

    Attributes:
        engine: what the server calls itself, e.g. "vllm"; "unknown" where it does not say.
        prompt_logprobs: log-probabilities of the prompt's own tokens, for prompts given as token ids.
        top_k: most log-probabilities per prompt position, keyed by token id, that it gave; 0: none.
        chosen_logprobs: log-probabilities of chosen token ids at each prompt position.
        listed_logprobs: log-probabilities of chosen candidates for the next token, whatever their rank.
        cache_block: how many tokens go into a block of the cache, where the end of a sequence is scored
            without computing what blocks of its beginning hold; 0: it is not.
        special_tokens: tokens such as BOS that the server puts before a prompt given as text.
        empty_output: takes `max_tokens` 0.
        usage: counts tokens in a plain answer; stream_usage: at a stream's end; continuous_usage: in each
            chunk.
        reasons: name of what is missing → what the server said.
    """

    engine: str
    version: str | None
    model: str
    max_model_len: int | None
    prompt_logprobs: bool
    top_k: int
    chosen_logprobs: bool
    listed_logprobs: bool
    cache_block: int
    special_tokens: int | None
    empty_output: bool
    usage: bool
    stream_usage: bool
    continuous_usage: bool
    reasons: dict[str, str] = field(default_factory=dict)

    def require_prompt_logprobs(self) -> None:
        """Refuse what needs log-likelihoods.

        Raises:
            EndpointError: the endpoint gives no log-probabilities of prompt tokens; says why.
        """
        if not self.prompt_logprobs:
            raise EndpointError(
                f"{self.model} on {self.engine} cannot score prompts: {self.reasons['prompt_logprobs']} "
                "Accuracy and fidelity would be chance-level numbers, so nothing was measured."
            )


def probe(endpoint: Endpoint) -> Capabilities:
    """Ask the endpoint for each capability; some twenty small requests.

    Raises:
        EndpointError: it cannot be reached, refuses the key or does not serve the model.
    """
    endpoint.require_model()
    version = (endpoint.get_optional("/version") or {}).get("version")
    reasons: dict[str, str] = {}

    def found(name: str, check: Callable[[], int]) -> int:
        try:
            return check()
        except EndpointError as error:
            reasons[name] = str(error)
            return 0

    def supports(name: str, check: Callable[[], None]) -> bool:
        def passed() -> int:
            check()
            return 1

        return found(name, passed) == 1

    return Capabilities(
        engine=endpoint.owner or "unknown",
        version=str(version) if version else None,
        model=endpoint.model,
        max_model_len=endpoint.max_model_len,
        prompt_logprobs=supports("prompt_logprobs", partial(_check_scores, endpoint)),
        top_k=next((k for k in TOP_K if supports(f"top_k={k}", partial(_check_top, endpoint, k))), 0),
        chosen_logprobs=supports("chosen_logprobs", partial(_check_chosen, endpoint)),
        listed_logprobs=supports("listed_logprobs", partial(_check_listed, endpoint)),
        cache_block=found("cache_block", partial(_cache_block, endpoint)),
        special_tokens=_special_tokens(endpoint),
        empty_output=supports("empty_output", partial(_check_empty_output, endpoint)),
        usage=supports("usage", partial(_check_usage, endpoint)),
        stream_usage=supports("stream_usage", partial(_check_stream, endpoint, False)),
        continuous_usage=supports("continuous_usage", partial(_check_stream, endpoint, True)),
        reasons=reasons,
    )


def _check_scores(endpoint: Endpoint) -> None:
    """A repeated pattern and a scrambled one must get different, non-zero likelihoods."""
    start = len(PATTERN) * 2
    repeated = endpoint.score(PATTERN * 3).total(start)
    scrambled = endpoint.score(PATTERN * 2 + PATTERN[::-1]).total(start)
    if repeated == 0.0 or repeated == scrambled:
        raise EndpointError(
            f"The endpoint's log-probabilities do not depend on the prompt: a repeated and a scrambled "
            f"sequence both sum to {repeated:g}."
        )


def _check_top(endpoint: Endpoint, k: int) -> None:
    top = endpoint.score(PATTERN, top_k=k).top
    found = len(top[-1]) if top else 0
    if found != k:
        raise EndpointError(f"The endpoint gave {found} log-probabilities per position of {k} asked for.")


def _check_chosen(endpoint: Endpoint) -> None:
    """The prompt's own tokens and the likeliest ones, asked for by id, must get the figures they had."""
    known = endpoint.score(PATTERN, top_k=1)
    likeliest = [next(iter(row.items())) for row in (known.top or [])[1:]]
    ids = np.array([[own, top] for own, (top, _) in zip(PATTERN[1:], likeliest, strict=True)], np.int32)
    expected = [[own, top] for own, (_, top) in zip(known.token_logprobs[1:], likeliest, strict=True)]
    found = endpoint.score(PATTERN, top_k=1, chosen=ids).chosen
    if found is None or np.abs(found - np.array(expected, float)).max() > TOLERANCE:
        raise EndpointError("The endpoint's log-probabilities of chosen tokens are those of other tokens.")


def _check_listed(endpoint: Endpoint) -> None:
    """Tokens that no model would write here must come with log-probabilities too."""
    found = endpoint.next_token(PATTERN * 2, PATTERN[1:], listed=True).logprobs
    missing = sorted(set(PATTERN[1:]) - set(found))
    if missing:
        raise EndpointError(
            f"The endpoint gave no log-probabilities of tokens {missing}, which were asked for."
        )


def _cache_block(endpoint: Endpoint) -> int:
    """After a known beginning, the end must get the figures that it gets where all is computed."""
    start, salt = len(BEGINNING), secrets.token_hex(16)
    endpoint.score_end(BEGINNING + PATTERN, start, salt=salt)
    sequence = BEGINNING + PATTERN[::-1]
    found = endpoint.score_end(sequence, start, salt=salt)
    if found is None or found.cached == 0:
        raise EndpointError(
            "The endpoint does not score a prompt's end with its beginning from the cache, or does not tell. "
            "vLLM does when it is started with --enable-scale-out and --enable-prompt-tokens-details."
        )
    pairs = zip(found.token_logprobs[start:], endpoint.score(sequence).token_logprobs[start:], strict=True)
    if any(abs((a or 0.0) - (b or 0.0)) > TOLERANCE for a, b in pairs):
        raise EndpointError(
            "The endpoint scores a prompt's end differently with its beginning from the cache."
        )
    # An odd number of blocks, whose size is a power of two: the lowest bit that is set.
    return found.cached & -found.cached


def _special_tokens(endpoint: Endpoint) -> int | None:
    """How many more tokens a text counts when the server may add its own; None where it does not tell."""
    try:
        plain, bare = (
            endpoint.complete("The", max_tokens=1, **options)["usage"]["prompt_tokens"]
            for options in ({}, {"add_special_tokens": False})
        )
    except (EndpointError, KeyError, TypeError):
        return None
    return int(plain) - int(bare)


def _check_empty_output(endpoint: Endpoint) -> None:
    endpoint.complete(PATTERN, max_tokens=0, echo=True)


def _check_usage(endpoint: Endpoint) -> None:
    usage = endpoint.complete(PATTERN, max_tokens=1).get("usage") or {}
    if usage.get("prompt_tokens") != len(PATTERN):
        raise EndpointError(
            f"The endpoint counts {usage.get('prompt_tokens')} tokens of {len(PATTERN)} sent."
        )


def _check_stream(endpoint: Endpoint, continuous: bool) -> None:
    """Token counts in the last chunk, or in every one with vLLM's `continuous_usage_stats`."""
    options = {"include_usage": True, **({"continuous_usage_stats": True} if continuous else {})}
    chunks = endpoint.stream(PATTERN, max_tokens=2, stream_options=options)
    wanted = chunks if continuous else chunks[-1:]
    if not chunks or not all(chunk.get("usage") for chunk in wanted):
        raise EndpointError(f"The endpoint streams no token counts with stream_options {options}.")
