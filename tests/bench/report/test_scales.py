"""Axes and their marks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdeploy.bench.report.scales import fitted, linear, log_ticks, logarithmic, nice_top, ticks

VALUES = st.floats(1e-4, 1e6)


@given(st.lists(VALUES, min_size=1, max_size=20))
def test_all_values_are_on_the_axis(values: list[float]) -> None:
    axis = fitted(values)
    scale = axis.scale(0, 100)
    assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in values)
    assert all(axis.low <= mark * (1 + 1e-9) and mark <= axis.high * (1 + 1e-9) for mark in axis.marks)
    assert sorted(axis.marks) == list(axis.marks) and len(axis.marks) <= 13


@given(st.floats(1e-6, 1e6), st.floats(11, 1e6))
def test_decades_are_logarithmic_and_marked(low: float, ratio: float) -> None:
    axis = fitted([low, low * ratio])
    assert axis.is_log
    assert axis.marks


@given(VALUES, VALUES)
def test_a_larger_value_is_farther(a: float, b: float) -> None:
    low, high = sorted((a, b))
    for scale in (linear(1e-4, 1e6, 0, 1), logarithmic(1e-4, 1e6, 0, 1)):
        assert scale(low) <= scale(high)


def test_equal_ratios_are_equally_far() -> None:
    scale = logarithmic(1, 1000, 0, 3)
    assert [scale(10.0**i) for i in range(4)] == pytest.approx([0, 1, 2, 3])
    assert scale(0.0) == scale(0.5) == 0


def test_marks_are_round() -> None:
    assert ticks(0, 1, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert log_ticks(1, 30) == pytest.approx([1, 2, 5, 10, 20])
    assert log_ticks(1, 2000) == pytest.approx([1, 10, 100, 1000])


def test_values_that_are_all_alike_have_an_axis() -> None:
    for value in (0.0, 5.0, -5.0):
        assert math.isfinite(fitted([value]).scale(0, 1)(value))


def test_a_top_is_above() -> None:
    assert nice_top([7.3]) >= 7.3
    assert nice_top([]) == nice_top([0]) == 1
