from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.accuracy.harness import harness_tasks
from qdeploy.bench.accuracy.items import Generate, Likelihood
from qdeploy.bench.accuracy.tasks import load_tasks
from qdeploy.errors import UsageError
from tests.bench.accuracy.conftest import write_task

pytestmark = pytest.mark.filterwarnings("ignore")
DOCS = [
    {"story": "s1", "question": "the color of snow?", "choices": ["black", "white"], "answer": 1},
    {"story": "s1", "question": "the color of coal?", "choices": ["black", "white"], "answer": 0},
    {"story": "s2", "question": "the color of grass?", "choices": ["dark red", "green", "blue"], "answer": 1},
]
CONFIG: dict[str, Any] = {
    "task": "local_colors",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(autouse=True)
def lm_eval() -> None:
    pytest.importorskip("lm_eval")


def test_limit_takes_the_first_items(hub: Path) -> None:
    [task] = load_tasks([str(write_task(hub, DOCS, **CONFIG))], limit=2).tasks
    assert [item.requests[0] for item in task.items] == [
        ("Question: the color of snow?\nAnswer:", " black"),
        ("Question: the color of coal?\nAnswer:", " black"),
    ]


def test_examples_come_before_the_question_unless_the_task_forbids_them(hub: Path) -> None:
    config = {**CONFIG, "fewshot_split": "test"}
    [task] = harness_tasks(str(write_task(hub, DOCS, **config)), None, shots=2)
    assert "2-shot" in task.source
    assert all(
        str(call[0]).count("Question:") == 3 for call in task.items[0].requests if isinstance(call, tuple)
    )
    [task] = harness_tasks(str(write_task(hub, DOCS, **config, num_fewshot=0)), None, shots=2)
    assert "0-shot" in task.source


def test_items_of_one_passage_are_one_cluster(hub: Path) -> None:
    [task] = harness_tasks(str(write_task(hub, DOCS, **CONFIG)), None, cluster_by=("story",))
    assert [item.cluster for item in task.items] == ["local_colors/s1", "local_colors/s1", "local_colors/s2"]


def test_metrics_that_are_no_shares_are_figures(hub: Path) -> None:
    metrics = [*CONFIG["metric_list"], {"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    [task] = harness_tasks(str(write_task(hub, DOCS, **{**CONFIG, "metric_list": metrics})), None)
    assert (task.metrics, list(task.totals)) == (("acc",), ["f1"])
    graded = task.grade(task.items[0], [Likelihood(-2.0), Likelihood(-1.0)])
    assert (graded["acc"], graded["f1"]) == (1.0, (1, 1))


def test_sampled_answers_are_asked_as_often_as_the_task_says(hub: Path) -> None:
    config = {
        **CONFIG,
        "output_type": "generate_until",
        "repeats": 3,
        "generation_kwargs": {"until": ["\n"], "do_sample": True, "temperature": 0.5},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {"name": "vote", "filter": [{"function": "majority_vote"}, {"function": "take_first"}]}
        ],
    }
    del config["doc_to_choice"]
    [task] = harness_tasks(str(write_task(hub, DOCS, **config)), None)
    calls = [call for call in task.items[0].requests if isinstance(call, Generate)]
    assert [(call.repeat, call.sampling, call.max_tokens) for call in calls] == [
        (n, (("temperature", 0.5),), 256) for n in range(3)
    ]
    assert task.grade(task.items[0], ["0", "1", "1"])["exact_match,vote"] == 1.0


def test_a_group_is_one_task_of_several_kinds(hub: Path) -> None:
    members = []
    for name in ("red", "green"):
        write_task(hub, DOCS, **{**CONFIG, "task": f"all_{name}"})
        members.append(f"all_{name}")
    (hub / "all.yaml").write_text('{"group": "all_colors", "task": ["all_red", "all_green"]}')
    from lm_eval.tasks import TaskManager

    from qdeploy.bench.accuracy import harness

    loaded = TaskManager(include_path=str(hub), include_defaults=False).load("all_colors")
    task = harness.joined(
        "all_colors", [harness.task_of(n, t, None, None, ()) for n, t in loaded["tasks"].items()]
    )
    assert [item.doc_id for item in task.items[:2]] == ["all_red/0", "all_red/1"]
    assert {item.kind for item in task.items} == set(members)
    answers = [Likelihood(-2.0), Likelihood(-1.0)]
    assert [task.grade(task.items[i], answers)["acc"] for i in (0, 1, 3, 4)] == [1.0, 0.0, 1.0, 0.0]


def test_what_cannot_be_asked_is_refused(hub: Path) -> None:
    path = write_task(hub, DOCS, **CONFIG)
    with pytest.raises(UsageError, match="no such file"):
        load_tasks([str(path.with_name("other.yaml"))], None)
    text = path.read_text()
    path.write_text(text.replace("local_colors.jsonl", "missing.jsonl"))
    with pytest.raises(UsageError, match="cannot load it"):
        load_tasks([str(path)], None)
    path.write_text(text.replace('"answer"', '"story"').replace("{{answer}}", "{{story}}"))
    with pytest.raises(UsageError, match="is none of"):
        load_tasks([str(path)], None)


def test_missing_lm_eval_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.tasks", None)
    with pytest.raises(UsageError, match=r"qdeploy\[eval\]"):
        load_tasks(["arc_easy"], None)
