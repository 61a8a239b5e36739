"""Prompts of a given length that no cache can have seen.

Token ids are drawn from those that ordinary words encode to, so that a prompt has exactly the asked length
and no special token. Where the endpoint takes text only, words are drawn instead, and their number is
calibrated by the usage that one request returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.load.workload.dialect import Prompt
from qdeploy.bench.load.workload.words import WORDS
from qdeploy.errors import UsageError

TEXT = " ".join(WORDS)
MEASURED, WARMUP, BLOCKS = 0, 1, 2
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


@dataclass(frozen=True)
class Material:
    """What prompts are made of: token ids, or words where an endpoint takes text only.

    A prompt of ids has exactly the length asked, `prefix` included; one of words about that, by the words
    `per_token` and the tokens of the chat template `around` it.
    """

    units: NDArray[Any]
    prefix: tuple[int, ...] = ()
    per_token: float = 1.0
    around: int = 0

    def draw(self, lengths: Sequence[int], rng: np.random.Generator) -> list[Prompt]:
        """A prompt of each length in tokens; never of nothing but the prefix."""
        sizes = [self._size(tokens) for tokens in lengths]
        drawn = iter(rng.choice(self.units, size=sum(sizes)).tolist())
        return [self._prompt(list(islice(drawn, size))) for size in sizes]

    def join(self, blocks: Sequence[NDArray[Any]], tokens: int, rng: np.random.Generator) -> Prompt:
        """A prompt of `tokens` tokens: `blocks` one after another, cut off or filled up at random."""
        size = self._size(tokens)
        units = [unit for block in blocks for unit in block.tolist()][:size]
        return self._prompt([*units, *rng.choice(self.units, size=size - len(units)).tolist()])

    def block(self, tokens: int, rng: np.random.Generator) -> NDArray[Any]:
        """The units of `tokens` tokens, for `join`."""
        return rng.choice(self.units, size=round(tokens * self.per_token))

    def _size(self, tokens: int) -> int:
        """Units of a prompt of `tokens` tokens."""
        return max(round((tokens - len(self.prefix) - self.around) * self.per_token), 1)

    def _prompt(self, units: list[Any]) -> Prompt:
        return [*self.prefix, *units] if self.units.dtype.kind == "i" else " ".join(units)


def generator(seed: int, salt: str, *stream: int) -> np.random.Generator:
    """The random generator of one run's prompts."""
    return np.random.default_rng([seed, int(salt, 16), *stream])
