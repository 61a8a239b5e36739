"""Texts to token sequences of one length: packed, never padded."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdeploy.calibration.chat import Chat
from qdeploy.calibration.sources import documents
from qdeploy.errors import CalibrationError
from qdeploy.recipe import CalibrationConfig

SHORTEST = 32
"""Tokens below which a sequence is too short to be worth proposing."""


@dataclass(frozen=True)
class CalibrationSet:
    """What the model is run on while statistics are gathered.

    Attributes:
        tokens: int64 [S, T].
        source: as in the recipe.
        sha256: of the bytes of `tokens`.
        seed: as in the recipe.
        samples: S.
        sequence_length: T.
        documents: how many texts the tokens come from.
        bos: whether each sample starts with the tokenizer's BOS.
    """

    tokens: Tensor
    source: str
    sha256: str
    seed: int
    samples: int
    sequence_length: int
    documents: int
    bos: bool


def load(config: CalibrationConfig, tokenizer: Any) -> CalibrationSet:
    """Read, tokenize, pack and draw samples.

    Documents are shuffled by the seed and joined; of one long text, windows drawn by the seed are taken in
    their order. Each sample starts with BOS exactly where the tokenizer adds one by default.

    Raises:
        CalibrationError: the source cannot be read, or is too short for the samples asked for.
        UnknownNameError: no such source.
    """
    found = documents(config.source)
    bos = _default_bos(tokenizer)
    length = config.sequence_length - (bos is not None)
    chance = random.Random(config.seed)
    if len(found) == 1:
        stream, used = _tokenize(found, tokenizer, bos, limit=None)
        windows = len(stream) // length
        drawn = sorted(chance.sample(range(windows), min(config.samples, windows)))
    else:
        chance.shuffle(found)
        stream, used = _tokenize(found, tokenizer, bos, limit=config.samples * length)
        drawn = list(range(min(config.samples, len(stream) // length)))
    if len(drawn) < config.samples:
        raise _too_short(config, len(stream), length)
    tokens = _pack(stream, drawn, length, bos)
    return CalibrationSet(
        tokens=tokens,
        source=config.source,
        sha256=hashlib.sha256(tokens.numpy().tobytes()).hexdigest(),
        seed=config.seed,
        samples=config.samples,
        sequence_length=config.sequence_length,
        documents=used,
        bos=bos is not None,
    )


def _default_bos(tokenizer: Any) -> int | None:
    """The id of BOS if the tokenizer puts it before a text by default, else None."""
    bos: int | None = tokenizer.bos_token_id
    ids = tokenizer("a").input_ids
    return bos if bos is not None and len(ids) > 1 and ids[0] == bos else None


def _tokenize(
    found: Iterable[str | Chat], tokenizer: Any, bos: int | None, limit: int | None
) -> tuple[list[int], int]:
    """Token ids of the documents one after the other, up to `limit`, and the number of documents read."""
    stream: list[int] = []
    used = 0
    for document in found:
        text = document.render(tokenizer) if isinstance(document, Chat) else document
        if bos is not None:
            # A chat template may write BOS itself.
            text = text.removeprefix(tokenizer.bos_token)
        stream += tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        used += 1
        if limit is not None and len(stream) >= limit:
            break
    return stream, used


def _pack(stream: Sequence[int], drawn: Iterable[int], length: int, bos: int | None) -> Tensor:
    head = [] if bos is None else [bos]
    return torch.tensor([head + list(stream[i * length : (i + 1) * length]) for i in drawn])


def _too_short(config: CalibrationConfig, found: int, length: int) -> CalibrationError:
    ways = []
    if found >= length:
        ways.append(f"--samples {found // length}")
    shorter = found // config.samples + config.sequence_length - length
    if shorter >= SHORTEST:
        ways.append(f"--sequence-length {shorter}")
    advice = " or ".join(ways) or "a longer text"
    return CalibrationError(
        f"Calibration text {config.source} has {found} tokens; {config.samples} samples of "
        f"{config.sequence_length} need {config.samples * length}. Use {advice}."
    )
