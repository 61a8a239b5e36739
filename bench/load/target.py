"""The endpoint that the load is for: its address, its dialect, and prompts that it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdeploy.bench.load.dialect import Dialect, Prompt
from qdeploy.bench.load.prompts import Vocabulary, id_prompts, text_prompts


@dataclass(frozen=True)
class Target:
    """An endpoint that answered. `words_per_token` sizes text prompts; `vocabulary` makes prompts of ids."""

    base_url: str
    model: str
    version: str | None
    dialect: Dialect
    vocabulary: Vocabulary | None = None
    words_per_token: float = 1.0

    @property
    def url(self) -> str:
        return self.base_url + self.dialect.path

    def payloads(
        self, count: int, prompt_tokens: int, output_tokens: int, rng: np.random.Generator
    ) -> list[bytes]:
        """`count` request bodies whose prompts differ: exactly `prompt_tokens` long as ids, about as text."""
        prompts: list[Prompt]
        if self.vocabulary and self.dialect.token_ids:
            prompts = [*id_prompts(self.vocabulary, prompt_tokens, count, rng)]
        else:
            prompts = [*text_prompts(max(round(prompt_tokens * self.words_per_token), 1), count, rng)]
        return [self.dialect.payload(self.model, prompt, output_tokens) for prompt in prompts]
