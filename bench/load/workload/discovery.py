"""Find out what an endpoint serves and how it wants to be asked, before any load."""

from __future__ import annotations

from dataclasses import replace

from qdeploy.bench.load.client.client import Client
from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.figures.outcome import Outcome, read_outcome
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.load.workload.dialect import Dialect, dialects
from qdeploy.bench.load.workload.prompts import TEXT, WARMUP, Vocabulary, generator, vocabulary
from qdeploy.bench.load.workload.target import Target
from qdeploy.engines.endpoint import Endpoint
from qdeploy.errors import EndpointError, UsageError

FIELD_REFUSED = (400, 422)
NO_SUCH_ROUTE = (404, 405)


def look_up(endpoint: Endpoint, spec: LoadSpec, words: Vocabulary | None) -> Target:
    """What the endpoint says about itself; `words` overrides the vocabulary of its /tokenize route.

    Raises:
        EndpointError: nobody answers, the key is refused, or the model is not served.
        UsageError: prompt and output are longer together than the served context.
    """
    served = endpoint.models()
    if endpoint.model not in served:
        raise EndpointError(
            f"{endpoint.base_url} does not serve {endpoint.model!r}. "
            f"It serves: {', '.join(served) or 'nothing'}."
        )
    limit, asked = endpoint.max_model_len, spec.prompt_tokens + spec.output_tokens
    if limit and asked > limit:
        raise UsageError(
            f"{spec.prompt_tokens} prompt and {spec.output_tokens} output tokens make {asked}, but "
            f"{endpoint.model!r} is served with a context of {limit}. "
            "Lower --prompt-tokens or --output-tokens."
        )
    return Target(
        base_url=endpoint.base_url,
        model=endpoint.model,
        version=(endpoint.get_optional("/version") or {}).get("version"),
        dialect=Dialect(),
        vocabulary=words or _served_vocabulary(endpoint),
        max_model_len=limit,
    )


async def negotiate(target: Target, api_key: str | None, spec: LoadSpec) -> Target:
    """`target` in the fullest dialect that it accepts, found by sending it requests of the run's kind.

    Raises:
        EndpointError: none is accepted, or answers lack what the measurement needs.
    """
    refusal, missing = "", set[str]()
    for dialect in dialects(spec, token_ids=target.vocabulary is not None):
        if dialect.path in missing:
            continue
        candidate = replace(target, dialect=dialect)
        status, outcome = await _ask(candidate, api_key, spec, spec.prompt_tokens)
        if outcome.error is None:
            return await _calibrate(candidate, api_key, spec, outcome.prompt_tokens or 1)
        refusal = f"{candidate.url}: {outcome.error}" + (f": {outcome.detail}" if outcome.detail else "")
        if status in NO_SUCH_ROUTE:
            missing.add(dialect.path)
        elif status not in FIELD_REFUSED:
            break
    raise EndpointError(f"The endpoint cannot be load-tested. {refusal}")


def _served_vocabulary(endpoint: Endpoint) -> Vocabulary | None:
    special, plain = endpoint.tokenize(TEXT), endpoint.tokenize(TEXT, add_special_tokens=False)
    return vocabulary(special, plain) if special and plain else None


async def _calibrate(target: Target, api_key: str | None, spec: LoadSpec, counted: int) -> Target:
    """`target` with the words to a token and the tokens of the chat template, by the server's counts.

    `counted` are the tokens of `spec.prompt_tokens` words in the template; one word more tells what it takes.
    """
    if target.dialect.token_ids:
        return target
    _, shortest = await _ask(target, api_key, spec, 1)
    template = min(max((shortest.prompt_tokens or 1) - 1, 0), counted - 1)
    return replace(
        target, words_per_token=spec.prompt_tokens / (counted - template), template_tokens=template
    )


async def _ask(target: Target, api_key: str | None, spec: LoadSpec, units: int) -> tuple[int | None, Outcome]:
    """Send one request of `units` ids or words for one token; the HTTP status and what came of it."""
    plain = replace(target, template_tokens=0, words_per_token=1.0)
    [payload] = plain.payloads(1, units, 1, generator(spec.seed, spec.salt, WARMUP))
    async with Client(target.url, api_key, spec.timeout_s) as client:
        exchange = await client.send(Exchange(0), payload)
    return exchange.status, read_outcome(exchange, 0, target.dialect.stream)
