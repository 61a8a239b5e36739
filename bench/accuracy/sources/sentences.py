"""Sentences, pairs and texts: the authors' files → the documents of lm-eval's tasks."""

from __future__ import annotations

from pathlib import Path

from qdeploy.bench.accuracy.sources.files import Splits, comma_separated, json_lines, tab_separated
from qdeploy.bench.fidelity.wikitext import articles

ENTAILMENT = {"entailment": 0, "not_entailment": 1}


def rte(folder: Path) -> Splits:
    """SuperGLUE's JSON lines: premise, hypothesis, label."""
    rows = json_lines(folder / "RTE" / "val.jsonl")
    names = (("premise", "sentence1"), ("hypothesis", "sentence2"))
    return {
        "validation": [
            {**{new: row[old] for old, new in names}, "label": ENTAILMENT[row["label"]]} for row in rows
        ]
    }


def qnli(folder: Path) -> Splits:
    """GLUE's TSV: index, question, sentence, label."""
    rows = tab_separated(folder / "QNLI" / "dev.tsv")
    return {"validation": [{**row, "label": ENTAILMENT[row["label"]]} for row in rows]}


def sst2(folder: Path) -> Splits:
    """TSV without a header: sentence, label."""
    rows = tab_separated(folder / "SST-2" / "dev.tsv", ("sentence", "label"))
    return {"validation": [{**row, "label": int(row["label"])} for row in rows]}


def mc_taco(folder: Path) -> Splits:
    """Original TSV without a header: sentence, question, answer, yes or no, category."""
    splits: Splits = {}
    for split, name in (("validation", "dev_3783.tsv"), ("test", "test_9442.tsv")):
        rows = tab_separated(folder / name, ("sentence", "question", "answer", "label", "category"))
        splits[split] = [{**row, "label": int(row["label"] == "yes")} for row in rows]
    return splits


def crows_pairs(folder: Path) -> Splits:
    """Original CSV."""
    return {"test": comma_separated(folder / "crows_pairs_anonymized.csv")}


def blimp(folder: Path, paradigm: str) -> Splits:
    """Original JSON lines, a file a paradigm; lm-eval scores what the hub calls train."""
    return {"train": json_lines(folder / f"{paradigm}.jsonl")}


def gsm8k(folder: Path) -> Splits:
    """Original JSON lines."""
    return {split: json_lines(folder / f"{split}.jsonl") for split in ("train", "test")}


def wikitext(folder: Path) -> Splits:
    """The raw test set; each article, from its title on, is one document."""
    text = (folder / "wikitext2-raw-test.txt").read_text(encoding="utf-8")
    return {"test": [{"page": page} for page in articles(text)]}
