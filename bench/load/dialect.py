"""How to ask this endpoint for a completion: which of the fields that not every engine accepts it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

Prompt = str | list[int]


@dataclass(frozen=True)
class Dialect:
    """The shape of a request.

    `ignore_eos` fixes the output length (an extension of vLLM, SGLang and TensorRT-LLM). `running_usage` asks
    for token counts on every chunk: without them the gap between chunks is known, that between tokens is not.
    """

    chat: bool = False
    token_ids: bool = True
    ignore_eos: bool = True
    running_usage: bool = True

    @property
    def path(self) -> str:
        return "/chat/completions" if self.chat else "/completions"

    def payload(self, model: str, prompt: Prompt, output_tokens: int) -> bytes:
        """The body of one streamed, greedy request."""
        options: dict[str, Any] = {"include_usage": True}
        if self.running_usage:
            options["continuous_usage_stats"] = True
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": options,
        }
        if self.chat:
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        if self.ignore_eos:
            body["ignore_eos"] = True
        return json.dumps(body).encode()


def dialects(token_ids: bool) -> Iterator[Dialect]:
    """Dialects from the fullest to the plainest; token ids only if there are ids to send."""
    shapes = [(False, True)] if token_ids else []
    for chat, ids in [*shapes, (False, False), (True, False)]:
        for ignore_eos, running_usage in product((True, False), repeat=2):
            yield Dialect(chat, ids, ignore_eos, running_usage)
