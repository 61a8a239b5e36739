"""Figures in words."""

from __future__ import annotations

import math

import pytest

from qdeploy.bench.records import Estimate
from qdeploy.bench.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.02514, "0.0251"),
        (8.4, "8.40"),
        (123.4, "123"),
        (12264, "12,264"),
        (-0.5, "−0.500"),
        (0.00001234, "1.23e−05"),
        (math.inf, "∞"),
        (math.nan, "not a number"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert numbers.number(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "unknown"), (12, "12 B"), (4080, "4.08 kB"), (269_000_000, "269 MB")]
)
def test_sizes_are_decimal(count: int | None, text: str) -> None:
    assert numbers.size(count).replace(numbers.JOIN, " ") == text


def test_an_estimate_without_interval_says_so() -> None:
    assert numbers.estimate(Estimate(value=2)) == "2.00 [no interval]"


def test_a_rounding_error_below_zero_is_zero() -> None:
    assert numbers.percent(-1e-17) == f"0.0{numbers.JOIN}%"


def test_points_carry_their_sign() -> None:
    text = numbers.estimate_points(Estimate(value=-0.009, low=-0.027, high=0.009))
    assert text.replace(numbers.JOIN, " ") == "−0.90 pp [−2.70, +0.90]"
