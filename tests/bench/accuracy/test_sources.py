"""Original files, a document or two in each form, through lm-eval's own tasks to prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.accuracy.harness import harness_tasks
from qdeploy.bench.accuracy.items import Generate, Rolling
from qdeploy.bench.accuracy.sources import questions, sentences
from qdeploy.bench.accuracy.sources.files import tab_separated
from qdeploy.bench.accuracy.suites import suite
from qdeploy.bench.accuracy.tasks import load_tasks
from qdeploy.errors import UnknownNameError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore")

PASSAGE = {"article": "It rains.", "questions": ["Is it dry?", "What falls?"], "answers": ["A", "B"],
           "options": [["no", "yes", "x", "y"], ["snow", "rain", "x", "y"]], "id": "1"}  # fmt: skip
DIALOGUE = {
    "answers": "B",
    "options": ["m : no .", "m : yes .", "m : a", "m : b"],
    "article": "f : well ?",
    "id": "1",
}
CASES: dict[str, tuple[dict[str, Any], Any, int | None]] = {
    "arc_easy": (
        {"arc/arc_easy.jsonl": {"query": "Question: Hot?", "choices": ["sun", "ice"], "gold": 0},
         "arc/arc_easy_dev.csv": "Cold?,ice,sun,fire,lamp,A\n"},
        ("Question: Hot?\nAnswer:", " sun"), 0),
    "openbookqa": (
        {"openbookqa/openbook_qa.jsonl": {"query": "The sun is", "choices": ["cold", "hot"], "gold": 1}},
        ("The sun is", " cold"), 1),
    "piqa": (
        {"piqa/valid.jsonl": {"goal": "Cut", "sol1": "knife", "sol2": "spoon"},
         "piqa/valid-labels.lst": "1\n"},
        ("Question: Cut\nAnswer:", " knife"), 1),
    "hellaswag": (
        {"hellaswag/hellaswag_val_full.txt": "Roof: A man sits. he\n3\na\nb\nc\nd\n"},
        ("Roof: A man sits. He", " a"), 3),
    "swag": (
        {"swag/swag.jsonl": {"startphrase": "She", "answer": 2, "choices": ["a", "b", "c", "d"]}},
        ("She", " a"), 2),
    "winogrande": (
        {"winogrande/winogrande_test_llmadapters.json": [{"answer": "option2", "instruction":
            "In the sentence: Ann beat Bea so _ won.\n\nOption1: Bea Option2: Ann Answer format: x"}]},
        ("Ann beat Bea so Bea", " won."), 1),
    "wsc273": (
        {"wsc273/winograd_wsc.jsonl": {"context_options": ["It fell as the box", "It fell as the bag"],
                                       "continuation": "broke.", "gold": 1}},
        ("It fell as the box", "  broke."), 1),
    "race": (
        {"race/test/high/1.txt": PASSAGE},
        ("Article: It rains.\n\nQuestion: Is it dry?\nAnswer: no\nWhat falls?", " snow"), 1),
    "mutual": ({"mutual/dev/dev_1.txt": DIALOGUE}, ("f: well?", " m: no."), 1),
    "pubmedqa": (
        {"pubmedqa/ori_pqal.json": {"7": {"QUESTION": "Is it?", "CONTEXTS": ["We saw."]}},
         "pubmedqa/test_ground_truth.json": {"7": "no"}},
        ("Abstract: We saw.\nQuestion: Is it?\nAnswer:", " yes"), 1),
    "qa4mre_2012": (
        {"qa4mre/QA4MRE-2012-EN_GS.xml": "<all><reading-test><doc>It rains.</doc>"
            "<q><q_str>What falls?</q_str>"
            "<answer a_id='1'>snow</answer><answer a_id='2' correct='Yes'>rain</answer>"
            "</q></reading-test></all>"},
        ("It rains.\nQuestion: What falls?\nAnswer:", " snow"), 1),
    "mc_taco": (
        {"mctaco/test_9442.tsv": "He ran.\tHow long?\tan hour\tyes\tEvent Duration\n",
         "mctaco/dev_3783.tsv": "He ran.\tHow long?\ta year\tno\tEvent Duration\n"},
        ("He ran.\nQuestion: How long?\nAnswer: an hour\nPlausible:", " no"), 1),
    "rte": (
        {"glue/RTE/val.jsonl": {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"}},
        ("It rains.\nQuestion: It is wet. True or False?\nAnswer:", " True"), 0),
    "sst2": (
        {"glue/SST-2/dev.tsv": "so \"good\t1\n"},
        ('so "good\nQuestion: Is this sentence positive or negative?\nAnswer:', " negative"), 1),
    "blimp_adjunct_island": (
        {"blimp/adjunct_island.jsonl": {"sentence_good": "Good.", "sentence_bad": "Bad."}},
        ("", " Good."), 0),
    "cmmlu_agronomy": (
        {"cmmlu/test/agronomy.csv": ",Question,A,B,C,D,Answer\n0,問,一,二,三,四,C\n",
         "cmmlu/dev/agronomy.csv": ",Question,A,B,C,D,Answer\n0,例,一,二,三,四,B\n"},
        None, 2),
}  # fmt: skip


@pytest.fixture(autouse=True)
def lm_eval() -> None:
    pytest.importorskip("lm_eval")


def _write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_documents_make_lm_eval_s_prompts(name: str, hub: Path) -> None:
    files, first, gold = CASES[name]
    [task] = harness_tasks(name, None, data_dir=_write(hub, files))
    assert (len(task.items), task.rows) == (1, 1)
    assert task.items[0].gold == gold
    if first is not None:
        assert task.items[0].requests[0] == first


def test_examples_come_from_the_training_file(hub: Path) -> None:
    [task] = harness_tasks("arc_easy", None, shots=1, data_dir=_write(hub, CASES["arc_easy"][0]))
    assert task.items[0].requests[0] == ("Question: Cold?\nAnswer: ice\n\nQuestion: Hot?\nAnswer:", " sun")
    with pytest.raises(UsageError, match="rte"):
        harness_tasks("rte", None, shots=1, data_dir=_write(hub, CASES["rte"][0]))


def test_generation_and_rolling_tasks(hub: Path) -> None:
    rows = {"question": "1 + 1?", "answer": "It is 2.\n#### 2"}
    folder = _write(hub, {"gsm8k/train.jsonl": rows, "gsm8k/test.jsonl": rows})
    [task] = harness_tasks("gsm8k", None, shots=1, data_dir=folder)
    assert isinstance(call := task.items[0].requests[0], Generate)
    assert set(call.until) == {"Question:", "</s>", "<|im_end|>"}
    graded = task.grade(task.items[0], ["So 1 + 1 is 2."])
    assert graded == {"exact_match,strict-match": 0.0, "exact_match,flexible-extract": 1.0}
    text = " \n = One = \n \n A , b . \n = = Part = = \n c \n = Two = \n d \n"
    [wiki] = harness_tasks(
        "wikitext", None, data_dir=_write(hub, {"wikitext2_raw/wikitext2-raw-test.txt": text})
    )
    assert [isinstance(item.requests[0], Rolling) for item in wiki.items] == [True, True]
    assert set(wiki.totals) == {"word_perplexity", "byte_perplexity", "bits_per_byte"}


def test_a_suite_says_what_it_skips(hub: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = load_tasks((), None, of_suite="s1", data_dir=_write(hub, CASES["arc_easy"][0]))
    assert [task.name for task in loaded.tasks] == ["arc_easy"]
    assert loaded.tasks[0].metrics == ("acc",)
    assert loaded.skipped.keys() == {entry.task for entry in suite("s1")} - {"arc_easy"}
    assert loaded.incomplete == {"arc_easy": "1 documents where the release has 2376"}
    assert "toxigen is skipped" in capfd.readouterr().err


def test_unknown_suites_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="openllm, s1"):
        load_tasks((), None, of_suite="s3")
    with pytest.raises(UsageError, match="is no folder"):
        harness_tasks("arc_easy", None, data_dir=tmp_path / "missing")


def test_mutual_is_judged_by_the_likeliest_answer(hub: Path) -> None:
    """lm-eval's r@1 is the same whatever the model says; acc is not."""
    from qdeploy.bench.accuracy.items import Likelihood

    [task] = harness_tasks("mutual", None, data_dir=_write(hub, CASES["mutual"][0]))
    right, wrong = ([Likelihood(-1.0 if i == best else -5.0, False) for i in range(4)] for best in (1, 2))
    graded = [task.grade(task.items[0], answers) for answers in (right, wrong)]
    assert [values["acc"] for values in graded] == [1.0, 0.0]
    assert [values["r@1"] for values in graded] == [1.0, 1.0]


def test_only_line_feeds_end_a_row(tmp_path: Path) -> None:
    """Texts hold other characters at which Python's own splitting would cut."""
    text = "one\u2028two\x85three\x0cfour"
    path = tmp_path / "rows.tsv"
    path.write_text(f"text\tlabel\n{text}\t1\n", encoding="utf-8")
    assert tab_separated(path) == [{"text": text, "label": "1"}]


def test_files_that_are_not_what_they_should_be_are_refused(tmp_path: Path) -> None:
    folder = _write(
        tmp_path, {"winogrande_test_llmadapters.json": [{"instruction": "?", "answer": "option1"}]}
    )
    with pytest.raises(ValueError, match="no sentence with two options"):
        questions.winogrande(folder)
    with pytest.raises(FileNotFoundError):
        sentences.qnli(tmp_path)
