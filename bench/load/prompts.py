"""Prompts of a given length that no cache can have seen.

Token ids are drawn from those that ordinary words encode to, so that a prompt has exactly the asked length
and no special token. Where the endpoint takes text only, words are drawn instead, and their number is
calibrated by the usage that one request returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qdeploy.bench.load.words import WORDS
from qdeploy.errors import UsageError

TEXT = " ".join(WORDS)
MEASURED, WARMUP = 0, 1
"""Streams of the random generator: warm-up prompts never repeat in the measurement."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids to draw prompts from, and the ids that open every prompt (the BOS token, if the model has one)."""

    ids: tuple[int, ...]
    prefix: tuple[int, ...] = ()


Encode = Callable[[str, bool], list[int]]
"""Text and whether to add special tokens → ids."""


def vocabulary(with_special: list[int], plain: list[int]) -> Vocabulary:
    """The vocabulary behind TEXT, given its ids with and without special tokens."""
    extra = len(with_special) - len(plain)
    prefix = with_special[: next((i for i in range(extra + 1) if with_special[i:][: len(plain)] == plain), 0)]
    return Vocabulary(tuple(sorted(set(plain))), tuple(prefix))


def local_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of `folder/tokenizer.json`.

    Raises:
        UsageError: the folder holds no readable tokenizer.json.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UsageError(f"--tokenizer: cannot read {path}: {error}. Name a folder that holds it.") from error
    return vocabulary(tokenizer.encode(TEXT).ids, tokenizer.encode(TEXT, add_special_tokens=False).ids)


def id_prompts(vocabulary: Vocabulary, tokens: int, count: int, rng: np.random.Generator) -> list[list[int]]:
    """`count` prompts of exactly `tokens` ids each (never fewer than the prefix and one)."""
    ids = np.array(vocabulary.ids)
    length = max(tokens - len(vocabulary.prefix), 1)
    return [[*vocabulary.prefix, *row] for row in rng.choice(ids, size=(count, length)).tolist()]


def text_prompts(words: int, count: int, rng: np.random.Generator) -> list[str]:
    """`count` prompts of `words` words each."""
    return [" ".join(row) for row in rng.choice(np.array(WORDS), size=(count, words)).tolist()]


def generator(seed: int, salt: str, stream: int) -> np.random.Generator:
    """The random generator of one run's prompts."""
    return np.random.default_rng([seed, int(salt, 16), stream])
