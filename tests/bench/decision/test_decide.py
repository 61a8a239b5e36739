"""Decisions over records: what is recommended, what never is, and what is said of the others."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.decision.decide import decide
from qdeploy.bench.records import Decision, Standing, SteadyWindow, load_decision, load_record
from qdeploy.errors import ComparisonError
from tests.bench.decision.conftest import BROKEN, KEPT, OPEN, plan_of, write_campaign

FAST = {1.0: KEPT, 2.0: KEPT}
SLOW = {1.0: KEPT, 2.0: BROKEN}


def decided(folder: Path, objective: dict[str, Any] | None = None, **variants: Any) -> Decision:
    campaign = write_campaign(folder / "campaign", **variants)
    return decide(campaign, plan_of(folder, objective))


def of(decision: Decision, name: str) -> Standing:
    return next(standing for standing in decision.standings if standing.name == name)


def test_the_one_that_keeps_the_highest_rate_is_recommended(tmp_path: Path) -> None:
    found = decided(tmp_path, w8={"rates": FAST}, w4={"rates": SLOW, "megabytes": 50})
    assert (found.verdict, found.recommended, found.ties) == ("pass", "w8", [])
    assert "Deploy w8: it keeps the objective up to the highest" in found.headline
    assert [s.verdict for s in found.standings] == ["pass", "pass", "pass"]


def test_a_tie_is_named_and_the_smaller_is_taken(tmp_path: Path) -> None:
    found = decided(tmp_path, w8={"rates": FAST}, w4={"rates": FAST, "megabytes": 50})
    assert (found.recommended, found.ties) == ("w4", ["w8"])
    assert "The runs do not tell w8 from it." in found.headline


def test_a_rate_that_is_not_refuted_ties_with_one_that_is_shown(tmp_path: Path) -> None:
    found = decided(tmp_path, w8={"rates": FAST}, w4={"rates": {1.0: KEPT, 2.0: OPEN}, "megabytes": 50})
    assert (found.recommended, found.ties) == ("w8", ["w4"])
    figure = of(found, "w4").figure
    assert figure and (figure.low, figure.value, figure.high) == (1.0, 2.0, 2.0)


def test_rates_that_overlap_tie_whichever_was_met_as_observed(tmp_path: Path) -> None:
    """As on the demo model: 2 shown and 3 not refuted, against 1 shown and 2 not refuted."""
    faster = {"rates": {1.0: KEPT, 2.0: KEPT, 3.0: OPEN}}
    found = decided(tmp_path, baseline={"rates": {1.0: KEPT, 2.0: OPEN, 3.0: BROKEN}}, w8=faster)
    assert (found.recommended, found.ties) == ("w8", ["baseline"])
    best, other = of(found, "w8").figure, of(found, "baseline").figure
    assert best and other and best.value > other.value


def test_lost_accuracy_turns_the_fastest_down(tmp_path: Path) -> None:
    found = decided(tmp_path, w8={"rates": SLOW}, w4={"rates": FAST, "lost": 400})
    assert (found.verdict, found.recommended) == ("pass", "w8")
    assert of(found, "w4").verdict == "fail"
    assert "keeps 99.0% of the baseline's accuracy" in of(found, "w4").reasons[0]


def test_what_is_undecided_is_not_recommended_and_leaves_the_decision_open(tmp_path: Path) -> None:
    found = decided(tmp_path, w8={"rates": SLOW}, w4={"rates": FAST, "lost": 30})
    assert (found.verdict, found.recommended) == ("inconclusive", "w8")
    assert "further items needed" in of(found, "w4").reasons[0]
    assert found.headline.endswith("Undecided and perhaps better: w4.")


def test_what_is_undecided_and_no_better_leaves_nothing_open(tmp_path: Path) -> None:
    found = decided(tmp_path, w8={"rates": FAST}, w4={"rates": SLOW, "lost": 30})
    assert (found.verdict, found.recommended) == ("pass", "w8")
    assert of(found, "w4").verdict == "inconclusive"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"invalid": ["half of the prompt came from the cache"]}, "invalid: half of the prompt"),
        ({"client_limited": True}, "limited by the load client"),
        ({"interrupted": True}, "interrupted"),
    ],
)
def test_an_unsound_run_is_not_recommended(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    found = decided(tmp_path, w8={"rates": FAST, **changes})
    assert found.recommended == "baseline"
    assert of(found, "w8").verdict == "inconclusive"
    assert reason in of(found, "w8").reasons[0] and "makes it again" in of(found, "w8").reasons[0]


@pytest.mark.parametrize(
    ("kind", "reason"), [("bench", "no load run"), ("eval", "accuracy was not compared")]
)
def test_what_was_not_measured_is_not_recommended(tmp_path: Path, kind: str, reason: str) -> None:
    campaign = write_campaign(tmp_path / "campaign", w8={"rates": FAST})
    shutil.rmtree(campaign / "variants" / "w8" / kind)
    found = decide(campaign, plan_of(tmp_path))
    assert found.recommended == "baseline"
    assert of(found, "w8").verdict == "inconclusive"
    assert reason in of(found, "w8").reasons[0]


def test_a_broken_limit_at_the_plans_own_rate_turns_down(tmp_path: Path) -> None:
    found = decided(tmp_path, w8={"rates": {1.0: BROKEN}})
    assert of(found, "w8").verdict == "fail"
    assert of(found, "w8").reasons == ["at 1.00 requests/s: p90_ttft=500ms broken (30 of 60 over)"]
    assert of(found, "w8").figure is None


def test_an_undecided_limit_says_how_many_requests_would_decide(tmp_path: Path) -> None:
    found = decided(tmp_path, w8={"rates": {1.0: OPEN}})
    assert "p90_ttft=500ms undecided (4 of 60 over), about" in of(found, "w8").reasons[0]


def test_limits_kept_while_the_queue_grows_show_nothing(tmp_path: Path) -> None:
    campaign = write_campaign(tmp_path / "campaign", w8={"rates": {1.0: KEPT, 2.0: KEPT}})
    folder = campaign / "variants" / "w8" / "rates" / "2"
    record = load_record(folder)
    assert record.load
    record.load.steady = SteadyWindow(
        start_s=1, end_s=30, requests=35, request_throughput=1.2, output_token_throughput=40
    )
    record.load.duration_s = 1 + record.load.completed / 1.2
    record.save(folder)
    figure = of(decide(campaign, plan_of(tmp_path)), "w8").figure
    assert figure and (figure.low, figure.value, figure.high) == (1.0, 1.0, 2.0)


def test_none_keeps_the_objective(tmp_path: Path) -> None:
    broken = {"rates": {1.0: BROKEN}}
    found = decided(tmp_path, baseline=broken, w8=broken)
    assert (found.verdict, found.recommended) == ("fail", None)
    assert found.headline == "No variant keeps the objective."


def test_nothing_is_recommended_where_all_is_open(tmp_path: Path) -> None:
    found = decided(tmp_path, baseline={"rates": {1.0: OPEN}}, w8={"rates": {1.0: OPEN}})
    assert (found.verdict, found.recommended) == ("inconclusive", None)
    assert found.headline == "Nothing can be recommended yet. Undecided: the 16-bit baseline and w8."


def test_conditions_take_the_place_of_the_verdict(tmp_path: Path) -> None:
    lost = {"rates": FAST, "lost": 400}
    assert of(decided(tmp_path / "a", {"fail_if": ["recovery_lcb<0.8"]}, w8=lost), "w8").verdict == "pass"
    found = decided(tmp_path / "b", {"fail_if": ["failed>0", "kl_mean>0.1"]}, w8=lost)
    assert of(found, "w8").verdict == "inconclusive", "no text was scored"
    assert "kl_lower_bound" in of(found, "w8").reasons[0] or "kl_mean" in of(found, "w8").reasons[0]
    assert of(found, "baseline").verdict == "pass", "nothing of the baseline is lost"


def test_conditions_on_load_hold_for_the_baseline_too(tmp_path: Path) -> None:
    found = decided(tmp_path, {"fail_if": ["p50_tpot_ms>5"]}, w8={"rates": FAST})
    assert [s.verdict for s in found.standings] == ["fail", "fail"]


def test_the_smallest(tmp_path: Path) -> None:
    found = decided(tmp_path, {"optimize": "size"}, w8={"rates": FAST}, w4={"rates": SLOW, "megabytes": 50})
    assert (found.verdict, found.recommended, found.ties) == ("pass", "w4", [])
    assert "is the smallest of those that keep the objective, 50.0\u00a0kB" in found.headline


def test_a_decision_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = decided(tmp_path, w8={"rates": FAST})
    found.save(tmp_path)
    assert load_decision(tmp_path) == found
    (tmp_path / "decision.json").write_text("{}")
    with pytest.raises(ComparisonError, match=r"decision.json is not a decision"):
        load_decision(tmp_path)
