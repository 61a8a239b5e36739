"""Perplexity protocols by name. Figures of two protocols differ for one and the same model.

gptq-wikitext2    WikiText-2 test, rows joined by two line breaks; windows of 2048 side by side
gptq-ptb          Penn Treebank validation, likewise
gptq-ptb-new      Penn Treebank test, rows joined by spaces
gptq-c4           256 random crops of documents of C4 validation
gptq-c4-new       the first 1100 documents of it, joined by spaces; the first 256 windows
lm-eval-wikitext  articles of WikiText-2 test, detokenized; rolling windows, each token scored once
llama.cpp         the raw file of WikiText-2 test; chunks of 512, BOS first, the second half scored
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from qdeploy.bench.fidelity.corpora import C4, PTB_TEST, PTB_VALIDATION, WIKITEXT2, Corpus
from qdeploy.bench.fidelity.windows import CROPS, Cut, chunks, crops, rolling, stream
from qdeploy.bench.tokenizer import Encoder

Cutter = Callable[[Sequence[str], Encoder, int], Cut]


@dataclass(frozen=True)
class Protocol:
    """A text and how it is cut.

    Attributes:
        length: tokens a window.
        cut: rows of the corpus, tokenizer, length → windows.
    """

    name: str
    corpus: Corpus
    length: int
    cut: Cutter

    def label(self, length: int, count: int, total: int) -> str:
        """The name, with whatever makes this another protocol than the one of that name."""
        changes = [f"windows of {length}"] if length != self.length else []
        changes += [f"first {count} of {total} windows"] if count != total else []
        return f"{self.name} ({', '.join(changes)})" if changes else self.name


def _joined(rows: Sequence[str], encoder: Encoder, length: int, join: str) -> Cut:
    return stream(join.join(rows), encoder, length)


C4_NEW_DOCUMENTS = 1100


def _c4_new(rows: Sequence[str], encoder: Encoder, length: int) -> Cut:
    cut = stream(" ".join(rows[:C4_NEW_DOCUMENTS]), encoder, length)
    return Cut(cut.text, cut.tokens[:CROPS])


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("gptq-wikitext2", WIKITEXT2, 2048, partial(_joined, join="\n\n")),
        Protocol("gptq-ptb", PTB_VALIDATION, 2048, partial(_joined, join="\n\n")),
        Protocol("gptq-ptb-new", PTB_TEST, 2048, partial(_joined, join=" ")),
        Protocol("gptq-c4", C4, 2048, crops),
        Protocol("gptq-c4-new", C4, 2048, _c4_new),
        Protocol("lm-eval-wikitext", WIKITEXT2, 2048, rolling),
        Protocol("llama.cpp", WIKITEXT2, 512, chunks),
    )
}
