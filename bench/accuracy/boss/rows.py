"""BOSS's data sets as rows: from its own files, else from those of their authors by its rules."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdeploy.bench.accuracy.boss.families import Family
from qdeploy.bench.accuracy.sources.files import Row, comma_separated, json_lines, text_lines

FOLDER = "boss"
"""Below --data-dir, as BOSS's archive is laid out: TASK/SET/{train,test}.{tsv,json}."""


def read_rows(family: Family, name: str, split: str, folder: Path) -> list[Row]:
    """The rows of "test" or "train": the family's columns, and Label (a number) or answers (texts).

    Raises:
        FileNotFoundError: neither BOSS's file nor the authors' is there; says which were looked for.
    """
    own = folder / FOLDER / family.folder / name / f"{split}.{'tsv' if family.labels else 'json'}"
    if own.is_file():
        return _tsv(own) if family.labels else _questions(own)
    place, read = ORIGINALS.get((name, split), (None, None))
    if place is None or read is None or not (folder / place).is_file():
        also = f" and no {folder / place}" if place else ""
        raise FileNotFoundError(f"no {own}{also}")
    return [_clean(row) for row in read(folder / place)]


def _tsv(path: Path) -> list[Row]:
    """BOSS skips rows without a text or a label, and so does this."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [{**row, "Label": int(row["Label"])} for row in rows if all(row.values())]


def _questions(path: Path) -> list[Row]:
    return [{**row, "answers": row["answers"]["text"]} for row in json_lines(path)]


def _clean(row: Row) -> Row:
    """Tabs and runs of blanks become one blank."""
    return {k: re.sub("[\t ]+", " ", v) if isinstance(v, str) else v for k, v in row.items()}


def semeval(path: Path) -> list[Row]:
    """SemEval-2016's tweets: id, label, text; lines of more fields are left out, as BOSS does."""
    labels = {"negative": 0, "positive": 1, "neutral": 2}
    fields = [line.strip().split("\t") for line in text_lines(path)]
    return [{"Text": f[2].strip(), "Label": labels[f[1]]} for f in fields if len(f) == 3]


def sst5(path: Path) -> list[Row]:
    """Sentences after their class: the outermost and the middle of five, as BOSS takes fifths of a scale."""
    labels = {"0": 0, "2": 2, "4": 1}
    found = [line.partition(" ") for line in text_lines(path)]
    return [{"Text": text, "Label": labels[grade]} for grade, _, text in found if grade in labels]


def implicit_hate(path: Path) -> list[Row]:
    """Posts of stage 1; all of them are the test."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [{"Text": row["post"], "Label": int(row["class"] != "not_hate")} for row in rows]


def toxigen(path: Path) -> list[Row]:
    """The annotated statements of SafeNLP with its labels; BOSS means two scores of which this has one."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [{"Text": row["text"], "Label": int(row["label"] == "hate")} for row in rows]


def contract_nli(path: Path) -> list[Row]:
    """Every hypothesis about every contract."""
    data = json.loads(path.read_text(encoding="utf-8"))
    labels = {"Entailment": 0, "NotMentioned": 1, "Contradiction": 2}

    def label(document: dict[str, Any], name: str) -> int:
        return labels[document["annotation_sets"][0]["annotations"][name]["choice"]]

    return [
        {"Premise": document["text"], "Hypothesis": about["hypothesis"], "Label": label(document, name)}
        for document in data["documents"]
        for name, about in data["labels"].items()
    ]


def anli(path: Path) -> list[Row]:
    """The development sets of three rounds, which stand in for the tests; `path` is the first round's."""
    labels = {"e": 0, "n": 1, "c": 2}
    rounds = [path.with_name(path.name.replace("r1", f"r{number}")) for number in (1, 2, 3)]
    rows = [row for file in rounds if file.is_file() for row in comma_separated(file)]
    return [
        {"Premise": r["context"], "Hypothesis": r["statement"], "Label": labels[r["gold_label"]]}
        for r in rows
    ]


def wanli(path: Path) -> list[Row]:
    """JSON lines: premise, hypothesis, gold."""
    labels = {"entailment": 0, "neutral": 1, "contradiction": 2}
    return [
        {"Premise": r["premise"], "Hypothesis": r["hypothesis"], "Label": labels[r["gold"]]}
        for r in json_lines(path)
    ]


def squad(path: Path) -> list[Row]:
    """SQuAD's form: articles, paragraphs, questions. XQuAD's English questions are 1190 of its dev set."""
    data = json.loads(path.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in data for paragraph in article["paragraphs"]]
    return [
        {"context": p["context"], "question": q["question"], "answers": [a["text"] for a in q["answers"]]}
        for p in paragraphs
        for q in p["qas"]
    ]


def mrqa(path: Path) -> list[Row]:
    """JSON lines of MRQA: a context and its questions; the first line of a release is a header."""
    contexts = [row for row in json_lines(path) if "qas" in row]
    return [
        {"context": c["context"], "question": q["question"], "answers": list(dict.fromkeys(_accepted(q)))}
        for c in contexts
        for q in c["qas"]
    ]


def _accepted(question: dict[str, Any]) -> list[str]:
    return [*question["answers"], *(found["text"] for found in question["detected_answers"])]


ORIGINALS: dict[tuple[str, str], tuple[str, Callable[[Path], list[Row]]]] = {
    ("semeval", "test"): ("semeval2016_task4/twitter-2016test-A.tsv", semeval),
    ("semeval", "train"): ("semeval2016_task4/twitter-2016train-A.tsv", semeval),
    ("sst5", "test"): ("sst/stsa.fine.test", sst5),
    ("sst5", "train"): ("sst/stsa.fine.train", sst5),
    ("implicit_hate", "test"): ("implicit_hate/implicit_hate_v1_stg1_posts.tsv", implicit_hate),
    ("toxigen", "test"): ("toxigen/toxiGen.json", toxigen),
    ("contract_nli", "test"): ("contract_nli/test.json", contract_nli),
    ("contract_nli", "train"): ("contract_nli/train.json", contract_nli),
    ("anli", "test"): ("anli/ANLI_analysis_r1_dev.csv", anli),
    ("wanli", "test"): ("wanli/test.jsonl", wanli),
    ("wanli", "train"): ("wanli_sample/train_sample.jsonl", wanli),
    ("squad", "test"): ("squad_like/xquad.en.json", squad),
    ("advqa", "test"): ("adversarialqa/test.json", _questions),
    ("advqa", "train"): ("adversarialqa/train.json", _questions),
    ("newsqa", "test"): ("newsqa_sample/NewsQA_sample.jsonl", mrqa),
}
"""(set, split) → the authors' file and what reads it."""
