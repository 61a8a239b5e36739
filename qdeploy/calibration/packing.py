"""One text to token sequences of one length: packed, never padded."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from qdeploy.calibration.chat import Chat
from qdeploy.calibration.sources import documents
from qdeploy.errors import CalibrationError
from qdeploy.recipe import CalibrationConfig

SHORTEST = 32
"""Tokens below which a sequence is too short to be worth proposing."""


def draw(
    source: str, samples: int, share: float, config: CalibrationConfig, tokenizer: Any, bos: int | None
) -> tuple[Tensor, int]:
    """Samples of one source, int64 [samples, T], and the number of documents that they come from.

    Documents are shuffled by the seed and joined; of one long text, windows drawn by the seed are taken in
    their order. Each sample starts with `bos` where the tokenizer adds one by default.

    Args:
        share: the fraction of all samples that `samples` was rounded from, for the advice in errors.

    Raises:
        CalibrationError: the source cannot be read, or is too short for the samples asked for.
        UnknownNameError: no such source.
    """
    found = documents(source)
    length = config.sequence_length - (bos is not None)
    chance = random.Random(config.seed)
    if len(found) == 1:
        stream, used = _tokenize(found, tokenizer, bos, limit=None)
        windows = len(stream) // length
        drawn = sorted(chance.sample(range(windows), min(samples, windows)))
    else:
        chance.shuffle(found)
        stream, used = _tokenize(found, tokenizer, bos, limit=samples * length)
        drawn = list(range(min(samples, len(stream) // length)))
    if len(drawn) < samples:
        raise _too_short(source, samples, share, config, len(stream), length)
    return _pack(stream, drawn, length, bos), used


def default_bos(tokenizer: Any) -> int | None:
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


def _too_short(
    source: str, samples: int, share: float, config: CalibrationConfig, found: int, length: int
) -> CalibrationError:
    ways = []
    # So many samples in all that the share's, rounded up, still fit.
    if fitting := int(found // length / share):
        ways.append(f"--samples {fitting}")
    shorter = found // samples + config.sequence_length - length
    if shorter >= SHORTEST:
        ways.append(f"--sequence-length {shorter}")
    if samples < config.samples:
        ways.append("a smaller weight")
    advice = " or ".join(ways) or "a longer text"
    part = "" if samples == config.samples else f"its part of the {config.samples}, "
    return CalibrationError(
        f"Calibration text {source} has {found} tokens; {part}{samples} samples of "
        f"{config.sequence_length} need {samples * length}. Use {advice}."
    )
