"""Questions with choices: the authors' files → the documents of lm-eval's tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from xml.etree import ElementTree

from qdeploy.bench.accuracy.sources.files import (
    Row,
    Splits,
    comma_separated,
    json_folder,
    json_lines,
    text_lines,
)

LETTERS = "ABCDE"


def _lettered(question: str, texts: Sequence[str], answer: str, name: str = "question") -> Row:
    choices = {"text": list(texts), "label": list(LETTERS[: len(texts)])}
    return {name: question, "choices": choices, "answerKey": answer}


def arc(folder: Path, level: str) -> Splits:
    """Test as JSON lines (query, choices, gold); train and validation as CSV, named dev and test."""
    test = [
        _lettered(row["query"].removeprefix("Question: "), row["choices"], LETTERS[row["gold"]])
        for row in json_lines(folder / f"arc_{level}.jsonl")
    ]
    splits = {"test": test}
    for split, file in (("train", "dev"), ("validation", "test")):
        path = folder / f"arc_{level}_{file}.csv"
        if path.is_file():
            rows = comma_separated(path, ("question", *"ABCD", "answer"))
            splits[split] = [_lettered(r["question"], [r[x] for x in "ABCD"], r["answer"]) for r in rows]
    return splits


def openbookqa(folder: Path) -> Splits:
    """JSON lines: query, choices, gold."""
    rows = json_lines(folder / "openbook_qa.jsonl")
    letters = [_lettered(r["query"], r["choices"], LETTERS[r["gold"]], "question_stem") for r in rows]
    return {"test": letters}


def piqa(folder: Path) -> Splits:
    """Original: a line of JSON and, in another file, a line with the label."""
    splits: Splits = {}
    for split, name in (("train", "train"), ("validation", "valid")):
        if (folder / f"{name}.jsonl").is_file():
            labels = (folder / f"{name}-labels.lst").read_text(encoding="utf-8").split()
            rows = zip(json_lines(folder / f"{name}.jsonl"), labels, strict=True)
            splits[split] = [{**row, "label": int(label)} for row, label in rows]
    return splits


def hellaswag(folder: Path) -> Splits:
    """Original JSON lines; else the text form of llama.cpp, six lines a question."""
    original = folder / "hellaswag_val.jsonl"
    if original.is_file():
        return {"validation": json_lines(original)}
    lines = text_lines(folder / "hellaswag_val_full.txt")
    return {"validation": [_hellaswag(lines[i : i + 6]) for i in range(0, len(lines) - 5, 6)]}


def _hellaswag(lines: Sequence[str]) -> Row:
    """The text form has run the two parts of the context together; the second begins the unended sentence."""
    activity, context = lines[0].split(": ", 1)
    parts = re.fullmatch(r"(.*[.!?]) +([^.!?]+)", context)
    first, second = parts.groups() if parts else (context, "")
    return {
        "activity_label": activity,
        "ctx_a": first,
        "ctx_b": second,
        "endings": list(lines[2:6]),
        "label": lines[1].strip(),
    }


def swag(folder: Path) -> Splits:
    """JSON lines: startphrase, choices, answer."""
    rows = json_lines(folder / "swag.jsonl")
    endings = [{f"ending{i}": text for i, text in enumerate(row["choices"])} for row in rows]
    return {
        "validation": [
            {"startphrase": row["startphrase"], **ending, "label": row["answer"]}
            for row, ending in zip(rows, endings, strict=True)
        ]
    }


WINOGRANDE = re.compile(r"sentence: (.*)\n\nOption1: (.*?) Option2: (.*?) Answer format", re.DOTALL)


def winogrande(folder: Path) -> Splits:
    """A JSON list of instructions that quote the sentence and both options."""
    rows = json.loads((folder / "winogrande_test_llmadapters.json").read_text(encoding="utf-8"))
    return {"validation": [_winogrande(row) for row in rows]}


def _winogrande(row: Row) -> Row:
    found = WINOGRANDE.search(row["instruction"])
    if found is None:
        raise ValueError(f"no sentence with two options in {row['instruction'][:80]!r}")
    sentence, first, second = found.groups()
    return {"sentence": sentence, "option1": first, "option2": second, "answer": row["answer"][-1]}


def wsc273(folder: Path) -> Splits:
    """JSON lines: both contexts up to and with the candidate, the continuation, gold."""
    return {"test": [_schema(row) for row in json_lines(folder / "winograd_wsc.jsonl")]}


def _schema(row: Row) -> Row:
    """The pronoun is gone from the file; a mark stands in its place, which the prompt does not show."""
    pairs = zip(*row["context_options"], strict=False)
    shared = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    start = shared[: shared.rfind(" ") + 1]
    options = [context[len(start) :] for context in row["context_options"]]
    text = f"{start}_ {row['continuation'].lstrip()}"
    return {
        "text": text,
        "pronoun": "_",
        "pronoun_loc": len(start),
        "options": options,
        "label": row["gold"],
    }


def mathqa(folder: Path) -> Splits:
    """Original: a JSON list."""
    names = (("train", "train.json"), ("validation", "dev.json"), ("test", "test.json"))
    found = [(split, folder / name) for split, name in names if (folder / name).is_file()]
    return {split: json.loads(path.read_text(encoding="utf-8")) for split, path in found}


def race(folder: Path) -> Splits:
    """Original: a JSON file a passage; its questions become one document."""
    passages = json_folder(folder / "test" / "high")
    return {"test": [{"article": p["article"], "problems": str(_problems(p))} for p in passages]}


def _problems(passage: Row) -> list[Row]:
    asked = zip(passage["questions"], passage["answers"], passage["options"], strict=True)
    return [{"question": q, "answer": a, "options": o} for q, a, o in asked]


def mutual(folder: Path) -> Splits:
    """Original: a JSON file a dialogue."""
    return {"validation": json_folder(folder / "dev")}


def pubmedqa(folder: Path) -> Splits:
    """Original: a JSON object of articles, and one with the answers of the test set."""
    articles = json.loads((folder / "ori_pqal.json").read_text(encoding="utf-8"))
    test = json.loads((folder / "test_ground_truth.json").read_text(encoding="utf-8"))
    return {"test": [{**articles[name], "final_decision": answer} for name, answer in test.items()]}


def qa4mre(folder: Path, year: int) -> Splits:
    """Original XML, gold standard: reading tests with a document and questions."""
    # The standard library's parser resolves no external entities, and refuses bombs since expat 2.4.
    tree = ElementTree.parse(folder / f"QA4MRE-{year}-EN_GS.xml")
    return {"train": [row for test in tree.iter("reading-test") for row in _reading_test(test)]}


def _reading_test(test: ElementTree.Element) -> list[Row]:
    document = (test.findtext("doc") or "").strip()
    return [_reading_question(document, question) for question in test.iter("q")]


def _reading_question(document: str, question: ElementTree.Element) -> Row:
    answers = list(question.iter("answer"))
    right = next(answer.get("a_id") for answer in answers if answer.get("correct") == "Yes")
    return {
        "document_str": document,
        "question_str": (question.findtext("q_str") or "").strip(),
        "answer_options": {
            "answer_id": [answer.get("a_id") for answer in answers],
            "answer_str": [(answer.text or "").strip() for answer in answers],
        },
        "correct_answer_id": right,
    }


def exam(folder: Path, subject: str, splits: dict[str, str]) -> Splits:
    """C-Eval and CMMLU: a CSV a subject and split; `splits` names its file."""
    paths = {split: folder / pattern.format(subject) for split, pattern in splits.items()}
    return {split: comma_separated(path) for split, path in paths.items() if path.is_file()}
