"""Distributions from the table of requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdeploy.bench.records import load_record
from qdeploy.bench.report.collect import collect
from qdeploy.bench.report.samples import MOST, latency_samples, steps
from qdeploy.errors import ComparisonError

from .simulated import load_run


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=3000))
def test_a_curve_is_nowhere_off_by_more_than_it_says(values: list[float]) -> None:
    ordered = np.sort(np.array(values))
    drawn, shares = steps(ordered)
    assert len(drawn) <= MOST
    assert (drawn[0], drawn[-1], shares[-1]) == (ordered[0], ordered[-1], 1)
    truth = np.searchsorted(ordered, ordered, side="right") / len(ordered)
    below = np.searchsorted(drawn, ordered, side="right")
    curve = np.concatenate([[0.0], shares])[below]
    allowed = 0.0 if len(ordered) <= MOST else 1 / (MOST - 1)
    assert np.abs(truth - curve).max() <= allowed + 1e-12


def test_samples_give_the_figures_of_the_record(tmp_path: Path) -> None:
    load_run(tmp_path / "run", "w8a8")
    variant = collect([tmp_path / "run"]).variants[0]
    load = load_record(tmp_path / "run").load
    assert load
    found = latency_samples(variant)
    assert set(found) == set(load.metrics) >= {"itl_ms"}
    for key, ordered in found.items():
        assert len(ordered) == load.metrics[key].count
        assert ordered.mean() == pytest.approx(load.metrics[key].mean)


def test_a_run_without_its_table_has_no_curve(tmp_path: Path) -> None:
    load_run(tmp_path / "run", "w8a8")
    (tmp_path / "run" / "requests.parquet").unlink()
    assert latency_samples(collect([tmp_path / "run"]).variants[0]) == {}


def test_a_broken_table_is_named(tmp_path: Path) -> None:
    load_run(tmp_path / "run", "w8a8")
    (tmp_path / "run" / "requests.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ComparisonError, match=r"requests\.parquet is broken"):
        latency_samples(collect([tmp_path / "run"]).variants[0])
