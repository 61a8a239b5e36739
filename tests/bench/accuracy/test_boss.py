"""BOSS: its prompts, its files and those of the authors, its scores, and calibration text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.accuracy.boss.__main__ import main
from qdeploy.bench.accuracy.boss.families import FAMILIES, WORDS
from qdeploy.bench.accuracy.boss.tasks import boss_task
from qdeploy.bench.accuracy.items import Generate, Task
from qdeploy.bench.accuracy.suites import known, suite
from qdeploy.bench.accuracy.tasks import load_tasks
from qdeploy.calibration.sources import READERS
from qdeploy.errors import UsageError

QUESTION = {"id": "1", "title": "t", "context": "It rains in Spain.", "question": "Where?",
            "answers": {"text": ["in Spain", "Spain"], "answer_start": [9, 12]}}  # fmt: skip
CONTRACT = {"documents": [{"text": "Keep\tit.", "annotation_sets": [{"annotations": {
    "a": {"choice": "Entailment"}, "b": {"choice": "Contradiction"}}}]}],
    "labels": {"a": {"hypothesis": "Kept."}, "b": {"hypothesis": "Told."}}}  # fmt: skip
ARTICLES = {"data": [{"paragraphs": [{"context": "It rains.", "qas": [
    {"question": "What?", "answers": [{"text": "It"}, {"text": "rain"}]}]}]}]}  # fmt: skip
MRQA = {"context": "It rains.", "qas": [
    {"question": "What?", "answers": ["It"], "detected_answers": [{"text": "rain"}]}]}  # fmt: skip
FILES: dict[str, tuple[str, Any, list[tuple[str, Any]]]] = {
    "amazon": ("boss/SentimentAnalysis/amazon/test.tsv", 'Text\tLabel\n"so ""good"""\t1\n\t0\nbad\t\n',
               [('so "good"', 1)]),
    "semeval": ("semeval2016_task4/twitter-2016test-A.tsv", "1\tneutral\ta  b\n2\tnegative\tc\td\n",
                [("a b", 2)]),
    "sst5": ("sst/stsa.fine.test", "4 good\n3 fair\n2 so\n1 poor\n0 bad\n",
             [("good", 1), ("so", 2), ("bad", 0)]),
    "implicit_hate": ("implicit_hate/implicit_hate_v1_stg1_posts.tsv",
                      'post\tclass\n"a ""b"""\timplicit_hate\nc\tnot_hate\n', [('a "b"', 1), ("c", 0)]),
    "toxigen": ("toxigen/toxiGen.json", [{"text": "a", "label": "hate"}, {"text": "b", "label": "neutral"}],
                [("a", 1), ("b", 0)]),
    "contract_nli": ("contract_nli/test.json", CONTRACT, [("Keep it.|Kept.", 0), ("Keep it.|Told.", 2)]),
    "anli": ("anli/ANLI_analysis_r1_dev.csv", 'context,statement,gold_label\n"a, b",c,n\n', [("a, b|c", 1)]),
    "wanli": ("wanli/test.jsonl", '{"premise": "a", "hypothesis": "b", "gold": "contradiction"}\n',
              [("a|b", 2)]),
    "squad": ("squad_like/xquad.en.json", ARTICLES, [("It rains.|What?", ["It", "rain"])]),
    "advqa": ("adversarialqa/test.json", json.dumps(QUESTION),
              [("It rains in Spain.|Where?", ["in Spain", "Spain"])]),
    "newsqa": ("newsqa_sample/NewsQA_sample.jsonl", f'{{"header": {{}}}}\n{json.dumps(MRQA)}\n',
               [("It rains.|What?", ["It", "rain"])]),
}  # fmt: skip


def _write(folder: Path, name: str, value: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def _inputs(task: Task) -> list[str]:
    """What stands in the last line of each prompt, fields apart."""
    calls = [item.requests[0] for item in task.items]
    prompts = [call.context if isinstance(call, Generate) else str(call[0]) for call in calls]
    fields = [prompt.split("### Input ###\n")[1].split(" // ")[:-1] for prompt in prompts]
    return ["|".join(field.split(": ", 1)[1] for field in line) for line in fields]


@pytest.mark.parametrize("name", FILES)
def test_files_become_questions(name: str, tmp_path: Path) -> None:
    path, content, expected = FILES[name]
    _write(tmp_path, path, content)
    task = boss_task(f"boss_{name}", None, tmp_path)
    assert _inputs(task) == [text for text, _ in expected]
    if task.metrics == ("acc",):
        assert [item.gold for item in task.items] == [answer for _, answer in expected]
    else:
        for item, (_, answers) in zip(task.items, expected, strict=True):
            assert all(task.grade(item, [f" {text}!"])["exact_match"] == 1.0 for text in answers)


def test_the_prompt_is_that_of_boss(tmp_path: Path) -> None:
    _write(tmp_path, "sst/stsa.fine.test", "4 good\n")
    [item] = boss_task("boss_sst5", None, tmp_path).items
    prompt = (
        "### Instruction ###\nSolve the sentiment analysis task. Options for sentiment: negative, positive, "
        "neutral.\n### Format ###\nText: {Text} // Prediction: {Prediction}\n### Input ###\nText: good // "
        "Prediction:"
    )
    assert item.requests == tuple((prompt, f" {label}") for label in ("negative", "positive", "neutral"))


def test_long_texts_are_cut(tmp_path: Path) -> None:
    _write(tmp_path, "sst/stsa.fine.test", f"4 {'a ' * WORDS}b\n")
    assert "b" not in _inputs(boss_task("boss_sst5", None, tmp_path))[0]


@pytest.mark.parametrize(
    ("written", "f1", "exact"),
    [("The Spain.", 1.0, 1.0), ("Spain and Portugal", 0.5, 0.0), ("rain", 0.0, 0.0), ("", 0.0, 0.0)],
)
def test_extracted_answers_are_scored_as_squad_does(
    tmp_path: Path, written: str, f1: float, exact: float
) -> None:
    """Of two accepted answers, "in Spain" and "Spain", the better one counts."""
    _write(tmp_path, "adversarialqa/test.json", json.dumps(QUESTION))
    task = boss_task("boss_advqa", None, tmp_path)
    found = task.grade(task.items[0], [written])
    assert found == {"f1": pytest.approx(f1), "exact_match": exact}


def test_questions_about_one_passage_are_one_cluster(tmp_path: Path) -> None:
    _write(tmp_path, "contract_nli/test.json", CONTRACT)
    first, second = boss_task("boss_contract_nli", None, tmp_path).items
    assert first.cluster == second.cluster


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"boss_sst5: no .*boss/Sentiment.*/test\.tsv and no .*stsa"):
        boss_task("boss_sst5", None, tmp_path)
    with pytest.raises(UsageError, match="--data-dir"):
        boss_task("boss_sst5", None, None)


def test_the_suite_asks_what_is_there_and_says_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdeploy.bench.accuracy.tasks.suite", lambda name: suite(name)[:16])
    _write(tmp_path, "sst/stsa.fine.test", "4 good\n0 bad\n")
    _write(tmp_path, "adversarialqa/test.json", json.dumps(QUESTION))
    loaded = load_tasks((), None, of_suite="s2", data_dir=tmp_path)
    assert [(task.name, task.metrics) for task in loaded.tasks] == [
        ("boss_sst5", ("acc",)), ("boss_advqa", ("f1",))
    ]  # fmt: skip
    assert len(loaded.skipped) == 14
    assert loaded.incomplete["boss_sst5"] == "2 documents where the release has 1067"


def test_the_suite_has_every_set_of_four_families() -> None:
    sets = {f"boss_{name}" for family in FAMILIES for name in family.sets}
    assert {entry.task for entry in suite("s2")} == sets | {"ceval-valid", "cmmlu"}
    assert known("boss_semeval").rows == 20622


def test_training_rows_become_calibration_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path, "sst/stsa.fine.train", "4 good\n3 fair\n0 bad\n")
    main(["sst5", "--data-dir", str(tmp_path), "-o", str(tmp_path / "out.jsonl")])
    texts = [str(text) for text in READERS[".jsonl"](tmp_path / "out.jsonl")]
    assert [text.split("Input ###\n")[1] for text in texts] == [
        "Text: good // Prediction: positive", "Text: bad // Prediction: negative"
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main(["amazon", "--data-dir", str(tmp_path), "-o", str(tmp_path / "out.jsonl")])
    assert stopped.value.code == 2
    assert "amazon has no training rows there" in capsys.readouterr().err
