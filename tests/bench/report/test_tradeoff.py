"""Pareto fronts, and which figures may be set against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdeploy.bench.records import Estimate
from qdeploy.bench.report.collect import Evidence, collect
from qdeploy.bench.report.tradeoff import Quantity, beaten_by, costs, front, kept, shared

from .conftest import CampaignMaker
from .simulated import SPEEDS, simulated_campaign


def quantity(values: list[float], more_is_better: bool) -> Quantity:
    return Quantity("q", "q", "u", more_is_better, {i: Estimate(value=v) for i, v in enumerate(values)}, "")


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(PAIRS, st.booleans(), st.booleans())
def test_the_front_is_what_nothing_beats(pairs: list[tuple[int, int]], more_x: bool, more_y: bool) -> None:
    x, y = quantity([float(a) for a, _ in pairs], more_x), quantity([float(b) for _, b in pairs], more_y)
    best = front(x, y)
    assert best
    for i in shared(x, y):
        if i not in best:
            assert any(j in best for j in beaten_by(i, x, y)), "what is beaten is beaten by one of the front"
    ys = [y.values[i].value for i in best]
    assert ys == sorted(ys, reverse=more_x == more_y), "along the front one figure is paid for with the other"


def test_equal_variants_do_not_beat_each_other() -> None:
    x, y = quantity([1, 1], True), quantity([2, 2], False)
    assert front(x, y) == [0, 1]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return collect([simulated_campaign(tmp_path_factory.mktemp("simulated"))])


def by_key(quantities: list[Quantity]) -> dict[str, Quantity]:
    return {quantity.key: quantity for quantity in quantities}


def test_every_figure_of_a_whole_campaign_is_known(simulated: Evidence) -> None:
    found = by_key([*kept(simulated), *costs(simulated)])
    assert list(found) == ["accuracy", "kl", "throughput", "objective", "ttft-sched", "tpot", "size"]
    assert all(len(quantity.values) == len(SPEEDS) for quantity in found.values())
    assert found["kl"].values[0].value == found["accuracy"].values[0].value == 0


def test_the_faster_engine_has_the_higher_knee(simulated: Evidence) -> None:
    throughput = by_key(costs(simulated))["throughput"]
    order = sorted(throughput.values, key=lambda i: throughput.values[i].value)
    names = [simulated.variants[i].name for i in order]
    assert names == sorted(SPEEDS, key=lambda name: -SPEEDS[name])


def test_an_engine_that_no_rate_saturated_has_no_known_knee(simulated: Evidence) -> None:
    variants = list(simulated.variants)
    series = variants[1].series
    assert series
    variants[1] = replace(variants[1], series=series.model_copy(update={"saturating_rate": None}))
    throughput = by_key(costs(Evidence(variants)))["throughput"]
    assert 1 not in throughput.values
    assert "No rate tried saturates w8a8" in throughput.note


def test_the_rate_within_the_objective_is_below_the_next_one_tried(simulated: Evidence) -> None:
    for i, found in by_key(costs(simulated))["objective"].values.items():
        series = simulated.variants[i].series
        assert series and found.value == series.best_rate and found.high and found.high > found.value
        assert [run.slo.met for run in series.runs if run.slo and run.rate == found.value] == [True]


def test_an_open_loop_says_nothing_of_throughput(make_campaign: CampaignMaker) -> None:
    throughput = by_key(costs(collect([make_campaign()])))["throughput"]
    assert not throughput.known
    assert "--sweep" in throughput.note


def test_other_loads_and_other_tasks_are_not_set_against_each_other(simulated: Evidence) -> None:
    variants = list(simulated.variants)
    bench, scored = variants[1].bench, variants[2].eval
    assert bench and bench.load and scored
    other_load = bench.model_copy(update={"load": bench.load.model_copy(update={"rate": 9.0})})
    other_task = scored.model_copy(update={"tasks": [scored.tasks[0].model_copy(update={"task": "other"})]})
    variants[1], variants[2] = replace(variants[1], bench=other_load), replace(variants[2], eval=other_task)
    evidence = Evidence(variants)
    assert 1 not in by_key(costs(evidence))["tpot"].values
    assert not by_key(kept(evidence))["accuracy"].known


def test_bounds_with_another_k_are_not_set_against_each_other(simulated: Evidence) -> None:
    variants = list(simulated.variants)
    scored = variants[1].eval
    assert scored and scored.fidelity
    other = scored.model_copy(update={"fidelity": scored.fidelity.model_copy(update={"top_k": 7})})
    variants[1] = replace(variants[1], eval=other)
    assert not by_key(kept(Evidence(variants)))["kl"].known


def test_variants_alone_have_no_baseline_at_zero(tmp_path: Path, simulated: Evidence) -> None:
    assert len(by_key(kept(Evidence(simulated.variants[1:])))["kl"].values) == len(SPEEDS) - 1
