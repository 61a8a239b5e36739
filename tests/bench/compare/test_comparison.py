"""Joining run folders, and refusing those that do not belong together."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.compare import compare_folders
from qdeploy.bench.records import Engine, Noise, load_record
from qdeploy.errors import ComparisonError

from .conftest import SETTINGS, answered, write_bench, write_eval, write_text_eval


def test_tasks_are_paired_and_the_suite_is_their_mean(pair: tuple[Path, Path]) -> None:
    [found] = compare_folders(pair[0], [pair[1]], 0.01).candidates
    by_task = {score.task: score for score in found.tasks}
    assert by_task["a"].difference is not None and by_task["a"].difference.value == pytest.approx(-0.04)
    assert by_task["b"].flips is not None and by_task["b"].flips.value == pytest.approx(0.001)
    assert by_task["b"].answer_changes is not None and by_task["b"].answer_changes.value == pytest.approx(
        0.001
    )
    assert [by_task["a"].verdict, by_task["b"].verdict] == ["fail", "pass"]
    assert found.suite is not None and found.suite.difference is not None
    assert found.suite.difference.value == pytest.approx(-0.0205)
    assert found.verdict == "fail", "one task is below the margin for sure, though the mean is not"


def test_a_margin_is_asked_of_the_runs_not_kept_in_them(pair: tuple[Path, Path]) -> None:
    [found] = compare_folders(pair[0], [pair[1]], 0.1).candidates
    assert found.verdict == "pass"


def test_a_folder_of_runs_is_a_side(tmp_path: Path) -> None:
    for name, tpot in (("base", 10.0), ("w4", 8.0)):
        write_eval(tmp_path / name / "eval", answered("a", 100, range(20)))
        write_bench(tmp_path / name / "bench", tpot)
    [found] = compare_folders(tmp_path / "base", [tmp_path / "w4"], 0.01).candidates
    assert found.name == "w4" and found.tasks and found.latencies


def test_one_run_each_is_compared_by_requests(tmp_path: Path) -> None:
    base, other = write_bench(tmp_path / "base", 10.0), write_bench(tmp_path / "w4", 8.0)
    [found] = compare_folders(base, [other], 0.01).candidates
    median = next(c for c in found.latencies if (c.metric, c.q) == ("tpot_ms", 0.5))
    assert median.unit == "requests" and median.ratio is not None
    assert median.ratio.value == pytest.approx(0.8)


def test_several_runs_are_compared_by_runs(tmp_path: Path) -> None:
    """The same ratio on runs that differ among themselves is less sure than one that does not."""
    spread = {"calm": (10.0, 10.01, 9.99), "wild": (10.0, 14.0, 7.0)}
    widths = []
    for name, medians in spread.items():
        for side, factor in (("base", 1.0), ("w4", 0.8)):
            for index, median in enumerate(medians):
                write_bench(tmp_path / name / side / f"bench-{index}", factor * median)
        [found] = compare_folders(tmp_path / name / "base", [tmp_path / name / "w4"], 0.01).candidates
        median_change = next(c for c in found.latencies if (c.metric, c.q) == ("tpot_ms", 0.5))
        assert median_change.unit == "runs" and median_change.ratio is not None
        assert median_change.ratio.value == pytest.approx(0.8)
        assert median_change.ratio.low is not None and median_change.ratio.high is not None
        widths.append(median_change.ratio.high - median_change.ratio.low)
    assert widths[0] < 0.01 < widths[1]


def test_divergence_is_computed_from_both_tables(tmp_path: Path) -> None:
    base, other = write_text_eval(tmp_path / "base", 0.0), write_text_eval(tmp_path / "w4", 0.1)
    [found] = compare_folders(base, [other], 0.01).candidates
    assert found.fidelity is not None and found.fidelity.kl_lower_bound is not None
    exact = 0.6 * math.log(0.6 / 0.5) + 0.2 * math.log(0.2 / 0.3)
    assert found.fidelity.kl_lower_bound.value == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"top_k": 3}, r"K \(--top-k\) 2 there, 3 here"),
        ({"text_sha256": "cd"}, "text"),
        ({"window_tokens": 8}, "tokens a window 512 there, 8 here"),
    ],
)
def test_another_text_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    base, other = write_text_eval(tmp_path / "base", 0.0), write_text_eval(tmp_path / "w4", 0.1, **changes)
    with pytest.raises(ComparisonError, match=told):
        compare_folders(base, [other], 0.01)


@pytest.mark.parametrize("key", ["tokenizer_sha256", "bos"])
def test_another_tokenizer_or_bos_policy_is_refused(tmp_path: Path, key: str) -> None:
    scores = answered("a", 100, range(20))
    base = write_eval(tmp_path / "base", scores)
    other = write_eval(tmp_path / "w4", scores, settings=SETTINGS | {key: "another"})
    with pytest.raises(ComparisonError, match="another here"):
        compare_folders(base, [other], 0.01)


def test_other_prompts_are_refused_and_counted(tmp_path: Path) -> None:
    scores = answered("a", 100, range(20))
    changed = [replace(s, prompt_hash="other") if i < 3 else s for i, s in enumerate(scores)]
    base, other = write_eval(tmp_path / "base", scores), write_eval(tmp_path / "w4", changed)
    with pytest.raises(ComparisonError, match="3 items have another prompt"):
        compare_folders(base, [other], 0.01)


def test_other_items_are_refused_unless_the_candidate_was_sampled(tmp_path: Path) -> None:
    scores = answered("a", 100, range(20))
    base, fewer = write_eval(tmp_path / "base", scores), write_eval(tmp_path / "few", scores[:50])
    with pytest.raises(ComparisonError, match="50 items are in the baseline only"):
        compare_folders(base, [fewer], 0.01)
    with pytest.raises(ComparisonError, match="50 items are in the candidate only"):
        compare_folders(fewer, [base], 0.01)
    sampled = write_eval(tmp_path / "sampled", scores[:50], looks={"a": (0.25, 0.5)})
    [found] = compare_folders(base, [sampled], 0.01).candidates
    assert found.tasks[0].items == 50


def test_looks_make_bounds_wider(tmp_path: Path) -> None:
    base = write_eval(tmp_path / "base", answered("a", 400, range(80)))
    scores = answered("a", 400, range(84))
    once = write_eval(tmp_path / "once", scores)
    often = write_eval(tmp_path / "often", scores, looks={"a": (0.25, 0.5, 0.75, 1.0)})
    bounds = [c.tasks[0].recovery_bounds for c in compare_folders(base, [once, often], 0.01).candidates]
    assert bounds[0] and bounds[1] and bounds[0].low and bounds[1].low
    assert bounds[1].low < bounds[0].low


def test_another_load_is_refused_and_another_seed_is_not(tmp_path: Path) -> None:
    base = write_bench(tmp_path / "base", 10.0)
    compare_folders(base, [write_bench(tmp_path / "seed", 8.0, seed=1)], 0.01)
    with pytest.raises(ComparisonError, match=r"rate 2\.0 there, 4\.0 here"):
        compare_folders(base, [write_bench(tmp_path / "w4", 8.0, rate=4.0)], 0.01)


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    base = write_bench(tmp_path / "base", 10.0)
    other = write_eval(tmp_path / "w4", answered("a", 100, range(20)))
    with pytest.raises(ComparisonError, match="nothing in common"):
        compare_folders(base, [other], 0.01)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComparisonError, match="not a run folder"):
        compare_folders(tmp_path / "empty", [base], 0.01)


def test_two_evaluations_on_one_side_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_eval(tmp_path / "base" / name, answered("a", 100, range(20)))
    with pytest.raises(ComparisonError, match="2 evaluations"):
        compare_folders(tmp_path / "base", [tmp_path / "base" / "one"], 0.01)


def test_what_is_within_the_noise_does_not_fail(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, other = pair
    [plain] = compare_folders(base, [other], 0.01).candidates
    record = load_record(base)
    assert plain.suite is not None
    record.noise = Noise(tasks=[*plain.tasks, plain.suite])
    record.save(base)
    [found] = compare_folders(base, [other], 0.01).candidates
    assert found.tasks[0].noise_difference == pytest.approx(0.04)
    assert (plain.tasks[0].verdict, found.tasks[0].verdict) == ("fail", "inconclusive")
    assert (plain.verdict, found.verdict) == ("fail", "inconclusive")


def test_another_machine_and_a_slow_client_are_noted(tmp_path: Path) -> None:
    base, other = write_bench(tmp_path / "base", 10.0), write_bench(tmp_path / "w4", 8.0)
    record = load_record(other)
    record.provenance["cpu"] = "Another CPU"
    assert record.load is not None and isinstance(record.engine, Engine)
    record.load.invalid = ["the client fell behind its schedule"]
    record.save(other)
    [found] = compare_folders(base, [other], 0.01).candidates
    assert len(found.notes) == 2
