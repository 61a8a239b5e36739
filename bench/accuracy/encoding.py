"""Items to token sequences, by the request protocol of lm-eval."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from qdeploy.bench.accuracy.items import Item
from qdeploy.bench.tokenizer import Encoder
from qdeploy.errors import UsageError


@dataclass(frozen=True, slots=True)
class Request:
    """A sequence to score, from `start` on. `split` marks a token that spans context and continuation."""

    ids: tuple[int, ...]
    start: int
    split: bool = False


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


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An item and its requests, one a choice."""

    item: Item
    requests: tuple[Request, ...]

    @property
    def prompt_hash(self) -> str:
        """SHA-256 of all token ids: items of two runs are the same question only where it agrees."""
        ids = [(request.ids, request.start) for request in self.requests]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def encode_item(encoder: Encoder, item: Item, max_model_len: int | None) -> EncodedItem:
    """Encode every choice.

    Raises:
        UsageError: a choice has no token of its own, or does not fit the served context. Cutting the context
            silently, as lm-eval does, would score another question.
    """
    encoded = EncodedItem(item, tuple(encode_request(encoder, *request) for request in item.requests))
    for request in encoded.requests:
        if len(request.ids) == request.start:
            raise UsageError(f"Item {item.doc_id}: a choice is empty once tokenized, so it has no score.")
        if max_model_len is not None and len(request.ids) >= max_model_len:
            raise UsageError(
                f"Item {item.doc_id} has {len(request.ids)} tokens; the server's context holds "
                f"{max_model_len} with one generated token. Serve with a larger --max-model-len."
            )
    return encoded
