"""The text that all tools are calibrated on, and the texts that they are scored on, as token ids without BOS.

What every Python brings along is always there, though it differs between versions; WikiText-2 and Penn
Treebank are scored on where the user has them.
"""

from __future__ import annotations

import argparse
import heapq
import inspect
import json
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

SEQUENCE_LENGTH = 512
WINDOWS = 14
UNSEEN_CHARACTERS = 120_000
"""The end of the documentation, which no calibration reaches."""
CHARACTERS = 80_000
"""Taken from the start of every other text."""
SPARE_TOKENS = 64
"""Text beyond the last calibration token, so that cutting it there does not change how that token is made."""
CODE = "Python code"
FILES = {"WikiText-2 test": "*wiki*test*.txt", "PTB validation": "*ptb*valid*.txt"}
"""Name of a text → its file somewhere in the user's data folder."""


def documentation() -> str:
    """Python's language reference: values of `pydoc_data.topics` in the order of their keys."""
    return "\n\n".join(topics[key] for key in sorted(topics))


def scored_texts(data: Path | None) -> dict[str, str]:
    """Name → text."""
    code = inspect.getsource(argparse) + inspect.getsource(heapq)
    found = {name: next(data.rglob(pattern), None) for name, pattern in FILES.items()} if data else {}
    files = {name: path.read_text(encoding="utf-8") for name, path in found.items() if path}
    texts = {name: text[:CHARACTERS] for name, text in {**files, CODE: code}.items()}
    return {"documentation, unseen part": documentation()[-UNSEEN_CHARACTERS:], **texts}


def c4(data: Path) -> dict[str, str]:
    """Texts of C4, if the user has any: name → text, or nothing."""
    file = next(data.rglob("c4*.jsonl"), None)
    if file is None:
        return {}
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    text = "\n\n".join(row.get("text") or row["prefix"] + row["gold_completion"] for row in rows)
    return {"C4": text[:CHARACTERS]}


def windows(text: str, model: Path, most: int = WINDOWS) -> Tensor:
    """The first windows of a text as tokens int64 [up to `most`, SEQUENCE_LENGTH]."""
    ids = _tokenizer(model)(text, add_special_tokens=False, verbose=False).input_ids
    count = min(most, len(ids) // SEQUENCE_LENGTH)
    return torch.tensor(ids[: count * SEQUENCE_LENGTH]).view(count, SEQUENCE_LENGTH)


def calibration(model: Path, samples: int, length: int = SEQUENCE_LENGTH) -> tuple[str, Tensor]:
    """The start of the documentation: a text, and the tokens int64 [samples, length] that it consists of.

    The text goes on for less than one more sample, so that a tool that packs it itself gets just these.

    Raises:
        ValueError: they would reach into the unseen part.
    """
    seen = documentation()[:-UNSEEN_CHARACTERS]
    encoded = _tokenizer(model)(seen, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    count = samples * length
    end = count + min(SPARE_TOKENS, length - 1)
    if end > len(encoded.input_ids):
        raise ValueError(f"{samples} × {length} tokens are more than the {len(encoded.input_ids)} there are")
    text = seen[: encoded.offset_mapping[end - 1][1]]
    return text, torch.tensor(encoded.input_ids[:count]).view(samples, length)


@cache
def _tokenizer(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)
