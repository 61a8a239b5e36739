"""WikiText-2's rows as its raw file, as articles, and as text without the marks of its tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence

DETOKENIZE: tuple[tuple[str, str], ...] = (
    (r"s '", "s'"),
    (r"/' [0-9]/", "/'[0-9]/"),
    (r" @-@ ", "-"),
    (r" @,@ ", ","),
    (r" @\.@ ", "."),
    *((rf" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)
"""Pattern → replacement, in this order: the rules of lm-eval's `wikitext`, even those that miss their aim."""


def raw_file(rows: Sequence[str]) -> str:
    """The text of wiki.*.raw: blank lines hold one space there, and are empty rows in the data set."""
    return "".join(row or " \n" for row in rows)


def articles(text: str) -> list[str]:
    """Those of the raw file, each from its title " = Title = " on, as in the document-level data set."""
    pages: list[list[str]] = [[]]
    for line in text.split("\n"):
        if _is_title(line):
            pages.append([])
        pages[-1].append(line)
    return [page for page in map("\n".join, pages) if page.strip()]


def _is_title(line: str) -> bool:
    """One equals sign a side; headings inside an article have two and more."""
    text = line.strip()
    return text.startswith("= ") and text.endswith(" =") and not text.startswith("= =")


def detokenize(page: str) -> str:
    """The article as people write it."""
    for pattern, replacement in DETOKENIZE:
        page = re.sub(pattern, replacement, page)
    return page
