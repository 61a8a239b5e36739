"""Items to token sequences, by the request protocol of lm-eval."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qdeploy.bench.accuracy.items import Call, Generate, Item, Rolling
from qdeploy.bench.tokenizer import Encoder
from qdeploy.errors import UsageError


@dataclass(frozen=True, slots=True)
class Request:
    """A sequence to score, from `start` on.

    Attributes:
        split: a token spans context and continuation.
        greedy: whether greedy decoding would write the continuation is asked too.
    """

    ids: tuple[int, ...]
    start: int
    split: bool = False
    greedy: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """A sequence to go on from, and how."""

    ids: tuple[int, ...]
    call: Generate


def encode_request(encoder: Encoder, context: str, continuation: str) -> Request:
    """Token ids of context + continuation and where the continuation begins.

    As lm-eval's `LM.loglikelihood`: an empty context is the prefix token; spaces that end the context move to
    the continuation; the sequence is enc(context) followed by what enc(context + continuation) has beyond
    that length, even where a token spans the border, because published figures are made so.
    """
    if not context:
        return _without_context(encoder, encoder.encode(continuation, bos=False))
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    head, whole = encoder.encode(context), encoder.encode(context + continuation)
    ids = (*head, *whole[len(head) :])
    return Request(ids, len(head), split=list(ids) != whole)


def _without_context(encoder: Encoder, ids: list[int]) -> Request:
    return Request(tuple(ids) if ids[:1] == [encoder.prefix] else (encoder.prefix, *ids), 1)


def encode_rolling(encoder: Encoder, text: str, window: int) -> Iterator[Request]:
    """Windows in which every token of `text` is scored once, each after at least one token of context.

    As lm-eval's `loglikelihood_rolling`: the first window begins with the prefix token; the last one reaches
    back into what is scored already, so that it is full.

    Args:
        window: most tokens of one sequence, context included.
    """
    ids = encoder.encode(text, bos=False)
    stream, most = (encoder.prefix, *ids), window - 1
    for scored in range(0, len(ids), most):
        end = min(scored + most, len(ids)) + 1
        yield Request(stream[max(0, end - window) : end], scored + 1 - max(0, end - window))


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An item and the requests that answer each of its calls: one, or the windows of a rolling text."""

    item: Item
    calls: tuple[tuple[Request | Generation, ...], ...]

    @property
    def requests(self) -> tuple[Request | Generation, ...]:
        """The requests of all calls."""
        return tuple(request for call in self.calls for request in call)

    @property
    def split(self) -> bool:
        """Whether a token spans context and continuation in some request."""
        return any(isinstance(request, Request) and request.split for request in self.requests)

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of all token ids: items of two runs are the same question only where it agrees."""
        ids = [
            (r.ids, r.start)
            if isinstance(r, Request)
            else (r.ids, r.call.until, r.call.max_tokens, r.call.sampling)
            for r in self.requests
        ]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def encode_item(encoder: Encoder, item: Item, max_model_len: int | None) -> EncodedItem:
    """Encode every call.

    Raises:
        UsageError: a choice has no token of its own, or a request does not fit the served context. Cutting
            the context silently, as lm-eval does, would ask another question.
    """
    calls = tuple(tuple(_encode(encoder, item, call, max_model_len)) for call in item.requests)
    return EncodedItem(item, calls)


def _encode(
    encoder: Encoder, item: Item, call: Call, max_model_len: int | None
) -> Iterator[Request | Generation]:
    if isinstance(call, Rolling):
        # One token fewer than fit, because the server generates one.
        yield from encode_rolling(encoder, call.text, (max_model_len or len(call.text) + 3) - 1)
    elif isinstance(call, Generate):
        ids = tuple(encoder.encode(call.context)) or (encoder.prefix,)
        _check_fits(item, len(ids), call.max_tokens, max_model_len)
        eos = encoder.tokenizer.eos_token
        ends = (*call.until, *((eos,) if eos and eos not in call.until else ()))
        yield Generation(ids, replace(call, context="", until=ends))
    else:
        request = encode_request(encoder, *call)
        if len(request.ids) == request.start:
            raise UsageError(f"Item {item.doc_id}: a choice is empty once tokenized, so it has no score.")
        _check_fits(item, len(request.ids), 1, max_model_len)
        yield replace(request, greedy=item.greedy)


def _check_fits(item: Item, tokens: int, generated: int, max_model_len: int | None) -> None:
    if max_model_len is not None and tokens + generated > max_model_len:
        words = "one generated token" if generated == 1 else f"up to {generated} generated ones"
        raise UsageError(
            f"Item {item.doc_id} has {tokens} tokens; the server's context holds {max_model_len} with "
            f"{words}. Serve with a larger --max-model-len."
        )
