"""How to ask this endpoint for a completion: which of the fields that not every engine accepts it takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

from qdeploy.bench.load.spec import LoadSpec

Prompt = str | list[int] | list[dict[str, str]]
"""Text, token ids, or the messages of a conversation."""

GREEDY = {"temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0}
"""Sent with every request: what is left out, an engine may take from the model's generation_config.json."""


@dataclass(frozen=True)
class Dialect:
    """The shape of a request.

    `extensions` are fields of vLLM, SGLang and TensorRT-LLM: `ignore_eos`, which fixes the output length, and
    `repetition_penalty`. `running_usage` asks for token counts on every chunk: without them the gap between
    chunks is known, that between tokens is not.
    """

    chat: bool = False
    token_ids: bool = True
    extensions: bool = True
    running_usage: bool = True
    stream: bool = True
    ignore_eos: bool = True
    stop: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return "/chat/completions" if self.chat else "/completions"

    @property
    def fixed_length(self) -> bool:
        """Whether every answer is as long as asked."""
        return self.extensions and self.ignore_eos and not self.stop

    def payload(self, model: str, prompt: Prompt, output_tokens: int) -> bytes:
        """The body of one greedy request."""
        body: dict[str, Any] = {"model": model, "max_tokens": output_tokens, **GREEDY, "stream": self.stream}
        if self.stream:
            body["stream_options"] = {"include_usage": True}
            if self.running_usage:
                body["stream_options"]["continuous_usage_stats"] = True
        if self.chat:
            body["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        else:
            body["prompt"] = prompt
        if self.stop:
            body["stop"] = list(self.stop)
        if self.extensions:
            body["repetition_penalty"] = 1
            body["ignore_eos"] = self.ignore_eos
        return json.dumps(body).encode()


def dialects(spec: LoadSpec, token_ids: bool) -> Iterator[Dialect]:
    """Dialects from the fullest to the plainest; token ids only if there are ids to send.

    Conversations go to the chat route unless the spec says otherwise.
    """
    chat = True if spec.dataset and spec.chat is None else spec.chat
    shapes = [(False, True)] if token_ids and not spec.dataset else []
    for is_chat, ids in [*shapes, (False, False), (True, False)]:
        if chat not in (None, is_chat):
            continue
        for extensions, running in product((True, False), (True, False) if spec.stream else (False,)):
            yield Dialect(is_chat, ids, extensions, running, spec.stream, spec.ignore_eos, spec.stop)
