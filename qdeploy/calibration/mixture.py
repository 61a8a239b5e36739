"""Several texts to one calibration set, each in its share."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdeploy.calibration.packing import default_bos, draw
from qdeploy.recipe import CalibrationConfig, Source

BUILTIN = "builtin"
BUILTIN_CHAT = "builtin-chat"
BUILTIN_PARTS = ("builtin-prose", "builtin-code", BUILTIN_CHAT)


@dataclass(frozen=True)
class Part:
    """What one source gave.

    Attributes:
        source: its name or file.
        samples: how many of the set's samples are its own.
        documents: how many texts their tokens come from.
        sha256: of the bytes of their tokens.
    """

    source: str
    samples: int
    documents: int
    sha256: str


@dataclass(frozen=True)
class CalibrationSet:
    """What the model is run on while statistics are gathered.

    Attributes:
        tokens: int64 [S, T].
        source: as in the recipe.
        parts: one for each source, largest share first.
        sha256: of the bytes of `tokens`.
        seed: as in the recipe.
        samples: S.
        sequence_length: T.
        bos: whether each sample starts with the tokenizer's BOS.
    """

    tokens: Tensor
    source: str
    parts: tuple[Part, ...]
    sha256: str
    seed: int
    samples: int
    sequence_length: int
    bos: bool


def load(config: CalibrationConfig, tokenizer: Any) -> CalibrationSet:
    """Read, tokenize and pack each source, and mix the samples.

    Samples are shared out by weight. Every source is drawn from with the seed alone, as if it were the only
    one; with several, the samples are then shuffled, so that any part of them is a mixture too.

    Raises:
        CalibrationError: a source cannot be read, or is too short for its share.
        UnknownNameError: no such source.
    """
    shares = _shares(config.source, bool(getattr(tokenizer, "chat_template", None)))
    counts = apportion(shares, config.samples)
    bos = default_bos(tokenizer)
    parts, drawn = [], []
    for source in sorted(counts, key=lambda source: -counts[source]):
        tokens, documents = draw(source, counts[source], shares[source], config, tokenizer, bos)
        parts.append(Part(source, counts[source], documents, _sha256(tokens)))
        drawn.append(tokens)
    tokens = torch.cat(drawn)
    if len(parts) > 1:
        order = list(range(config.samples))
        random.Random(config.seed).shuffle(order)
        tokens = tokens[order]
    return CalibrationSet(
        tokens=tokens,
        source=", ".join(map(str, config.source)),
        parts=tuple(parts),
        sha256=_sha256(tokens),
        seed=config.seed,
        samples=config.samples,
        sequence_length=config.sequence_length,
        bos=bos is not None,
    )


def _shares(sources: Sequence[Source], has_template: bool) -> dict[str, float]:
    """Source → its fraction of the samples; built-in text is split evenly over its parts.

    A model without a chat template is not made for chat, and gets none of the built-in one.
    """
    builtin = [part for part in BUILTIN_PARTS if has_template or part != BUILTIN_CHAT]
    weights: dict[str, float] = {}
    for source in sources:
        names = builtin if source.name == BUILTIN else [source.name]
        for name in names:
            weights[name] = weights.get(name, 0.0) + source.weight / len(names)
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def apportion(shares: Mapping[str, float], samples: int) -> dict[str, int]:
    """Source → whole number of samples, `samples` in sum, by the largest remainders.

    A source whose share is less than one sample may get none, and is left out then.
    """
    counts = {source: int(share * samples) for source, share in shares.items()}
    left = samples - sum(counts.values())
    by_remainder = sorted(shares, key=lambda source: counts[source] - shares[source] * samples)
    for source in by_remainder[:left]:
        counts[source] += 1
    return {source: count for source, count in counts.items() if count}


def _sha256(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
