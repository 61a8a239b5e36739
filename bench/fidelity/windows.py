"""Text cut into sequences of tokens, as each perplexity protocol does it."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qdeploy.bench.fidelity.wikitext import articles, detokenize, raw_file
from qdeploy.bench.tokenizer import Encoder
from qdeploy.errors import UsageError


@dataclass(frozen=True)
class Documents:
    """What a text is made of, where figures are per word and byte of it.

    Attributes:
        of_window: which document each window is of.
        words, bytes: of each document.
    """

    of_window: list[int]
    words: list[int]
    bytes: list[int]


@dataclass(frozen=True)
class Windows:
    """Sequences that are scored each on its own.

    Attributes:
        source: where the text is from.
        text_sha256: of the text.
        tokens: of each window.
        starts: the first position of each window that is scored, at least 1; empty: 1 in all.
        protocol: how the text was cut; figures of different protocols are not comparable.
        documents: None where the text is one stream, or its last document is cut short.
    """

    source: str
    text_sha256: str
    tokens: list[list[int]]
    starts: Sequence[int] = ()
    protocol: str = "stream"
    documents: Documents | None = None

    def start(self, window: int) -> int:
        """The first scored position of a window."""
        return self.starts[window] if self.starts else 1

    @property
    def scored(self) -> NDArray[np.int32]:
        """The tokens at all scored positions, int32 [P]."""
        tokens = [token for i, window in enumerate(self.tokens) for token in window[self.start(i) :]]
        return np.array(tokens, np.int32)


@dataclass(frozen=True)
class Cut:
    """What a protocol makes of a text: the fields of `Windows` that depend on it."""

    text: str
    tokens: list[list[int]]
    starts: Sequence[int] = ()
    documents: Documents | None = None


def stream(text: str, encoder: Encoder, length: int) -> Cut:
    """Non-overlapping windows from the start of one stream; the tail is dropped.

    The protocol of the GPTQ papers. BOS, where the tokenizer adds one, is at the stream's start only. (Their
    code multiplies a mean over T − 1 predictions by T and divides by the windows' T in the end: it cancels.)
    """
    tokens = encoder.encode(text)
    return Cut(text, [tokens[i : i + length] for i in range(0, len(tokens) - length + 1, length)])


CROPS = 256


def crops(rows: Sequence[str], encoder: Encoder, length: int) -> Cut:
    """256 random crops, each of a document longer than a window: GPTQ's C4, drawn as there with seed 0.

    Raises:
        UsageError: no document is that long.
    """
    draw = random.Random(0)
    encoded: dict[int, list[int]] = {}

    def tokens_of(index: int) -> list[int]:
        if index not in encoded:
            encoded[index] = encoder.encode(rows[index])
        return encoded[index]

    if not any(len(tokens_of(i)) > length for i in _by_length(rows)):
        longest = max((len(tokens) for tokens in encoded.values()), default=0)
        raise UsageError(
            f"gptq-c4 needs documents of more than {length} tokens, and the longest of these {len(rows)} has "
            f"{longest}. Use gptq-c4-new, which joins them, or C4's own validation file."
        )
    windows: list[list[int]] = []
    while len(windows) < CROPS:
        tokens = tokens_of(draw.randint(0, len(rows) - 1))
        if len(tokens) > length:
            first = draw.randint(0, len(tokens) - length - 1)
            windows.append(tokens[first : first + length])
    return Cut("\n".join(rows), windows)


def _by_length(rows: Sequence[str]) -> list[int]:
    """Longest first, so that a document that is long enough is found at once."""
    return sorted(range(len(rows)), key=lambda i: -len(rows[i]))


def chunks(rows: Sequence[str], encoder: Encoder, length: int) -> Cut:
    """llama.cpp's perplexity: chunks of WikiText's raw file, of which the second half is scored.

    The first token of every chunk gives way to BOS where the tokenizer adds one. Positions T/2 + 1 … T − 1
    are scored, so that each has at least T/2 tokens before it.
    """
    text = raw_file(rows).removesuffix("\n")
    cut = stream(text, encoder, length)
    bos = list(encoder.bos)
    tokens = [bos + window[len(bos) :] for window in cut.tokens]
    return Cut(text, tokens, [length // 2 + 1] * len(tokens))


def rolling(rows: Sequence[str], encoder: Encoder, length: int) -> Cut:
    """lm-eval's `wikitext`: every token of every article is scored once, in windows of up to `length` tokens.

    The first window of an article begins with the prefix token; the last one reaches back so that it is as
    long as the others. Words and bytes are those of the article before it is detokenized.
    """
    pages = articles(raw_file(rows))
    tokens: list[list[int]] = []
    starts: list[int] = []
    of_window: list[int] = []
    for number, page in enumerate(pages):
        for window, start in rolling_windows(
            encoder.encode(detokenize(page), bos=False), encoder.prefix, length
        ):
            tokens.append(window)
            starts.append(start)
            of_window.append(number)
    words = [len(re.split(r"\s+", page)) for page in pages]
    sizes = [len(page.encode("utf-8")) for page in pages]
    return Cut("\n".join(pages), tokens, starts, Documents(of_window, words, sizes))


def rolling_windows(tokens: list[int], prefix: int, length: int) -> list[tuple[list[int], int]]:
    """(window, first scored position) such that each token is scored once, behind at least one other."""
    whole = [prefix, *tokens]
    found = []
    for first in range(1, len(whole), length - 1):
        end = min(first + length - 1, len(whole))
        begin = max(end - length, 0)
        found.append((whole[begin:end], first - begin))
    return found
