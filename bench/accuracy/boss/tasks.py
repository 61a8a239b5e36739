"""BOSS's data sets as tasks.

Labels are chosen by their likelihood after the prompt. BOSS itself has models write them, leaves out of the
count what is no label, and takes an empty answer for the first one. Extracted answers are written, up to the
end of the line, and scored as SQuAD does: exact match and F1 of words, the best over the accepted answers.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qdeploy.bench.accuracy.boss.families import Family, family_of
from qdeploy.bench.accuracy.boss.rows import FOLDER, read_rows
from qdeploy.bench.accuracy.items import Answer, Generate, Item, Metric, Task
from qdeploy.bench.accuracy.sources.files import Row
from qdeploy.errors import UsageError

PREFIX = "boss_"
SOURCE = "BOSS (arXiv 2306.04618), 0-shot"
ANSWER_TOKENS = 32
"""Of an extracted answer; BOSS's own 5 cut many short."""


def is_boss(name: str) -> bool:
    """Whether a task's name is one of BOSS's data sets."""
    return name.startswith(PREFIX) and family_of(name.removeprefix(PREFIX)) is not None


def boss_task(name: str, limit: int | None, data_dir: Path | None) -> Task:
    """The task of a data set, e.g. "boss_sst5".

    Args:
        limit: rows, the first ones.

    Raises:
        UsageError: its files are not there, or are not what they should be.
    """
    short = name.removeprefix(PREFIX)
    family = family_of(short)
    assert family is not None
    if data_dir is None:
        raise UsageError(f"--tasks {name}: give the folder of its files with --data-dir (docs/tasks.md).")
    try:
        rows = read_rows(family, short, "test", data_dir)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"--tasks {name}: {error}. BOSS's archive, unpacked into {data_dir / FOLDER}, has it."
        ) from error
    title, asked = f"BOSS {short}", rows[:limit]
    if family.labels:
        items = [_labelled(family, name, number, row) for number, row in enumerate(asked)]
        return Task(name, title, f"{SOURCE}, label likelihood", items, ("acc",), rows=len(rows))
    items = [_extracted(family, name, number, row) for number, row in enumerate(asked)]
    grade = partial(_grade, {item.doc_id: row["answers"] for item, row in zip(items, asked, strict=True)})
    return Task(name, title, f"{SOURCE}, written", items, ("f1", "exact_match"), grade, rows=len(rows))


def _labelled(family: Family, name: str, number: int, row: Row) -> Item:
    prompt = family.prompt(row)
    return Item(
        doc_id=str(number),
        cluster=_cluster(family, name, number, row),
        requests=tuple((prompt, f" {label}") for label in family.labels),
        gold=row["Label"],
        lengths=tuple(len(label) + 1 for label in family.labels),
    )


def _extracted(family: Family, name: str, number: int, row: Row) -> Item:
    call = Generate(family.prompt(row), ("\n",), ANSWER_TOKENS)
    return Item(str(number), _cluster(family, name, number, row), (call,), None, ())


def _cluster(family: Family, name: str, number: int, row: Row) -> str:
    """Questions about one premise or passage belong together."""
    shared = row[next(iter(family.fields))] if len(family.fields) > 1 else str(number)
    return f"{name}/{shared}"


def _grade(accepted: dict[str, list[str]], item: Item, answers: Sequence[Answer]) -> dict[Metric, object]:
    written = _words(str(answers[0]))
    golds = [_words(text) for text in accepted[item.doc_id]]
    return {
        "f1": max(_f1(written, gold) for gold in golds),
        "exact_match": float(written in golds),
    }


def _words(text: str) -> list[str]:
    """Lower case without punctuation and articles."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _f1(written: Sequence[str], gold: Sequence[str]) -> float:
    """2·shared words over all words of both."""
    shared = (Counter(written) & Counter(gold)).total()
    return 2 * shared / (len(written) + len(gold)) if shared else float(not written and not gold)
