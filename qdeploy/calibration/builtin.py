"""Text that every Python brings along: prose, code and chat to calibrate on, and prose to score on.

    prose  the documentation of the language, and the docstrings of the library's modules
    code   the library's sources
    chat   questions after the library's classes and functions, answered by their docstrings

It differs between Python versions; the manifest's hashes tell which it was. Nothing in it stands for the web:
the library holds no such text, and a default that goes to the network when there is one would make two
machines calibrate on different texts without a word.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

from qdeploy.calibration.chat import Chat
from qdeploy.errors import CalibrationError

EVALUATION_CHARACTERS = 120_000
"""The end of the documentation is for scoring; nothing that stands in it is calibrated on."""

HELD_OUT = frozenset({"argparse", "heapq"})
"""Modules that no part shows, for whoever scores on code."""

SHINGLE = 12
"""Words in a row that tell two texts apart: documentation repeats itself, and docstrings repeat it."""

PIECE = 4_000
"""Characters of prose or code in a row, about two samples: no part may be filled by a few long modules."""

SHORTEST_DOCSTRING = 200
"""Characters below which a docstring says too little to be an answer."""

QUESTIONS = (
    "What does {name} in Python's standard library do?",
    "How do I use {name} in Python?",
    "Explain {name} from the Python standard library.",
)


@cache
def evaluation_text() -> str:
    """The prose to score on, of EVALUATION_CHARACTERS characters."""
    return _documentation()[-EVALUATION_CHARACTERS:]


@cache
def prose() -> tuple[str, ...]:
    """Pieces of documentation that share no SHINGLE words with the scored text."""
    texts = [_documentation()[:-EVALUATION_CHARACTERS]]
    texts += [text for name, text in _docstrings() if "." not in name]
    return tuple(piece for text in texts for piece in _pieces(text))


@cache
def code() -> tuple[str, ...]:
    """Pieces of the library's sources."""
    return tuple(piece for text in _sources().values() for piece in _pieces(text))


@cache
def chat() -> tuple[Chat, ...]:
    """A question and its answer for each class and function with a docstring worth reading."""
    found = [(name, text) for name, text in _docstrings() if "." in name and _unseen(text.split())]
    return tuple(
        Chat(_turns(QUESTIONS[i % len(QUESTIONS)].format(name=name), text), f"builtin-chat, {name}")
        for i, (name, text) in enumerate(found)
    )


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _documentation() -> str:
    return "\n\n".join(topics[key] for key in sorted(topics))


@cache
def _sources() -> dict[str, str]:
    """Module → source of the library's single-file modules; private ones may be of this machine alone."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = [name for name in sorted(sys.stdlib_module_names - HELD_OUT) if not name.startswith("_")]
    files = [path for name in names if (path := folder / f"{name}.py").is_file()]
    if not files:
        raise CalibrationError(
            f"Python's standard library in {folder} has no source files to calibrate on. "
            "Give a text: --calibration FILE.jsonl."
        )
    return {path.stem: path.read_text(encoding="utf-8") for path in files}


@cache
def _docstrings() -> tuple[tuple[str, str], ...]:
    """(dotted name, docstring) of public modules, classes, functions and methods, the short ones left out."""
    found = [(name, text) for module, source in _sources().items() for name, text in _read(module, source)]
    return tuple((name, text) for name, text in found if len(text) >= SHORTEST_DOCSTRING)


def _read(module: str, source: str) -> Iterator[tuple[str, str]]:
    tree = ast.parse(source)
    waiting: list[tuple[str, ast.Module | ast.ClassDef | ast.FunctionDef]] = [(module, tree)]
    while waiting:
        name, node = waiting.pop()
        yield name, ast.get_docstring(node) or ""
        if not isinstance(node, ast.FunctionDef):
            inner = [child for child in node.body if isinstance(child, ast.ClassDef | ast.FunctionDef)]
            waiting += [(f"{name}.{child.name}", child) for child in inner if child.name[0] != "_"]


def _pieces(text: str) -> Iterator[str]:
    """Runs of paragraphs of about PIECE characters, without those that the scored text shares."""
    kept: list[str] = []
    tail: list[str] = []
    for paragraph in text.split("\n\n"):
        # A longer one is a table, and would be many samples of the same.
        if len(paragraph) <= PIECE and _unseen(words := tail + paragraph.split()):
            kept.append(paragraph)
            tail = words[1 - SHINGLE :]
        if sum(map(len, kept)) >= PIECE:
            yield "\n\n".join(kept) + "\n\n"
            kept = []
    if kept:
        yield "\n\n".join(kept) + "\n\n"


def _unseen(words: Sequence[str]) -> bool:
    return _scored().isdisjoint(_shingles(words))


@cache
def _scored() -> frozenset[tuple[str, ...]]:
    return frozenset(_shingles(evaluation_text().split()))


def _shingles(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(SHINGLE)), strict=False)
