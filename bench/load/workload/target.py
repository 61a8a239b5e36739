"""The endpoint that the load is for: its address, its dialect, and prompts that it takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdeploy.bench.load.workload.dialect import Dialect
from qdeploy.bench.load.workload.prompts import Material, Vocabulary
from qdeploy.bench.load.workload.words import WORDS


@dataclass(frozen=True)
class Target:
    """An endpoint that answered. `words_per_token` sizes text prompts; `vocabulary` makes prompts of ids.

    `template_tokens` is what the chat template adds to a message, at most; `max_model_len` the longest prompt
    with its answer, where the endpoint says.
    """

    base_url: str
    model: str
    version: str | None
    dialect: Dialect
    vocabulary: Vocabulary | None = None
    words_per_token: float = 1.0
    template_tokens: int = 0
    max_model_len: int | None = None

    @property
    def url(self) -> str:
        return self.base_url + self.dialect.path

    @property
    def material(self) -> Material:
        """What prompts for it are made of."""
        if self.vocabulary and self.dialect.token_ids:
            return Material(np.array(self.vocabulary.ids), self.vocabulary.prefix)
        return Material(np.array(WORDS), per_token=self.words_per_token, around=self.template_tokens)

    def payloads(
        self, count: int, prompt_tokens: int, output_tokens: int, rng: np.random.Generator
    ) -> list[bytes]:
        """`count` request bodies whose prompts differ: exactly `prompt_tokens` long as ids, about as text."""
        prompts = self.material.draw([prompt_tokens] * count, rng)
        return [self.dialect.payload(self.model, prompt, output_tokens) for prompt in prompts]
