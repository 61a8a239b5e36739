"""Public texts that perplexity is quoted on: from the user's files, else from the hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from qdeploy.errors import UsageError


@dataclass(frozen=True)
class Corpus:
    """One split of a data set.

    Attributes:
        title: in words.
        files: patterns of its file anywhere under the user's folder; the first that matches is read.
        columns: names of the column that holds a row's text; of several, which are joined, all must be there.
        hub, options: name and arguments for `datasets.load_dataset`.
        line: a line of a plain-text file → the row as the data set has it.
    """

    title: str
    files: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    hub: str
    options: Mapping[str, Any]
    line: Callable[[str], str] = field(default=str.strip)


def _wikitext_line(line: str) -> str:
    """Blank lines are empty rows; the others keep their line break."""
    return line if line.strip() else ""


WIKITEXT2 = Corpus(
    "WikiText-2 test",
    ("*wiki*test*.jsonl", "*wiki*test*.parquet", "wiki.test.raw"),
    (("text",),),
    "Salesforce/wikitext",
    {"name": "wikitext-2-raw-v1", "split": "test"},
    _wikitext_line,
)
PTB_VALIDATION = Corpus(
    "Penn Treebank validation",
    ("ptb.valid.txt",),
    (("sentence",),),
    "ptb-text-only/ptb_text_only",
    {"name": "penn_treebank", "split": "validation"},
)
PTB_TEST = Corpus(
    "Penn Treebank test",
    ("ptb.test.txt",),
    (("sentence",),),
    "ptb-text-only/ptb_text_only",
    {"name": "penn_treebank", "split": "test"},
)
C4_FILE = "c4-validation.00000-of-00008.json.gz"
C4 = Corpus(
    "C4 validation",
    (C4_FILE, "*c4*.jsonl"),
    (("text",), ("prefix", "gold_completion")),
    "allenai/c4",
    {"data_files": {"validation": f"en/{C4_FILE}"}, "split": "validation"},
)


def load_rows(corpus: Corpus, folder: Path | None) -> tuple[str, list[str]]:
    """Where the rows come from, for the record, and the rows.

    Raises:
        UsageError: the corpus is neither under `folder` nor to be had from the hub, or its file is broken.
    """
    file = _find(corpus, folder) if folder else None
    if file is None:
        return f"{corpus.hub} (hub)", _from_hub(corpus, folder)
    try:
        rows = [_text(row, corpus, file) for row in _read(file, corpus)]
    except (OSError, EOFError, ValueError) as error:
        raise UsageError(f"{corpus.title}: {file} cannot be read: {error}.") from error
    return f"{file.parent.name}/{file.name}", rows


def _find(corpus: Corpus, folder: Path) -> Path | None:
    if not folder.is_dir():
        raise UsageError(f"--data-dir {folder}: no such folder.")
    return next((file for pattern in corpus.files for file in sorted(folder.rglob(pattern))), None)


def _read(file: Path, corpus: Corpus) -> Iterable[Any]:
    if file.suffix == ".parquet":
        import pyarrow.parquet

        rows: list[Any] = pyarrow.parquet.read_table(file).to_pylist()
        return rows
    # Not by splitlines(), which also splits at U+2028 and others that stand inside a text.
    text = _decompressed(file)
    if file.suffix in (".jsonl", ".gz"):
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    lines = text.removesuffix("\n").split("\n")
    return [corpus.line(f"{line}\n") for line in lines]


def _decompressed(file: Path) -> str:
    data = file.read_bytes()
    return (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")


def _text(row: Any, corpus: Corpus, file: Path) -> str:
    if isinstance(row, str):
        return row
    for columns in corpus.columns:
        if all(isinstance(row.get(column), str) for column in columns):
            return "".join(row[column] for column in columns)
    wanted = " or ".join(" + ".join(columns) for columns in corpus.columns)
    raise UsageError(f"{corpus.title}: {file} has a row with {', '.join(row)}; needed: {wanted}.")


def _from_hub(corpus: Corpus, folder: Path | None) -> list[str]:
    missing = f"No {corpus.files[0]} under {folder}. " if folder else ""
    remedy = f"Give a folder that holds {' or '.join(corpus.files)}: --data-dir DIR."
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{corpus.title} is not here. {missing}{remedy} Or, to take it from the hub: "
            "pip install 'qdeploy[hub]'."
        ) from error
    try:
        rows = datasets.load_dataset(corpus.hub, **corpus.options)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise UsageError(
            f"{corpus.title} is not here, and the hub does not give it: {error} {missing}{remedy}"
        ) from error
    return [str(row["".join(corpus.columns[0])]) for row in rows]
