"""The checks for methods of one's own pass the project's own, and see what is wrong with others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from qdeploy import registry
from qdeploy.methods.api import (
    ChannelProblem,
    LinearProblem,
    Solution,
    fit,
    relative_error,
    rounder,
    scaling,
)
from qdeploy.methods.base import ROUNDERS
from qdeploy.methods.registered import config_of
from qdeploy.methods.scaling import SCALINGS
from qdeploy.testing import check_rounder, check_transform


@dataclass(frozen=True)
class Own:
    """A method that only this file knows."""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    ROUNDERS.pop(Own, None)
    SCALINGS.pop(Own, None)


CHECKED = [name for name in registry.names("methods") if config_of(name) in {*ROUNDERS, *SCALINGS}]
"""Changes of basis and of the whole model have tests of their own."""


@pytest.mark.parametrize("name", CHECKED)
def test_the_projects_own_methods_pass(name: str) -> None:
    config = registry.load("methods", name)
    (check_rounder if config in ROUNDERS else check_transform)(config())


def plain(problem: LinearProblem) -> Solution:
    quantized = fit(problem.weight, problem.scheme).nearest(problem.weight)
    return Solution(quantized, relative_error(problem, quantized))


def with_float_scales(problem: LinearProblem) -> Solution:
    found = plain(problem)
    return replace(found, quantized=replace(found.quantized, scales=found.quantized.scales.float()))


def with_nan(problem: LinearProblem) -> Solution:
    found = plain(problem)
    return replace(found, quantized=replace(found.quantized, scales=found.quantized.scales * torch.nan))


def with_large_codes(problem: LinearProblem) -> Solution:
    found = plain(problem)
    codes = torch.full_like(found.quantized.codes, problem.scheme.qmax + 1 & 255)
    return replace(found, quantized=replace(found.quantized, stored=codes))


def with_a_flattering_error(problem: LinearProblem) -> Solution:
    return replace(plain(problem), relative_error=0.0)


def in_place(problem: LinearProblem) -> Solution:
    found = plain(problem)
    problem.weight.mul_(0.5)
    return found


def on_the_grid_of_its_own_rows(problem: LinearProblem) -> Solution:
    widest = problem.weight.abs().amax().expand(problem.weight.shape)
    quantized = fit(widest, problem.scheme).nearest(problem.weight)
    return Solution(quantized, relative_error(problem, quantized))


def totals_of_the_first(problem: LinearProblem) -> Solution:
    if problem.group.leads:
        problem.group.totals(1.0)
    return plain(problem)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (with_float_scales, r"W4A16 .*ordinary layer: scales are torch\.float32"),
        (with_nan, "a scale is NaN, infinite or too small"),
        (with_large_codes, "code 16 > 15"),
        (with_a_flattering_error, "relative_error is 0, but its codes lose 0.0"),
        (in_place, "the weight was written to"),
        (on_the_grid_of_its_own_rows, "two processes lose"),
        (totals_of_the_first, r"call group\.totals unequally often"),
    ],
)
def test_what_is_wrong_with_a_rounder_is_said(
    method: Callable[[LinearProblem], Solution], words: str
) -> None:
    rounder(Own, needs_hessian=True)(lambda _, problem: method(problem))
    with pytest.raises(AssertionError, match=words):
        check_rounder(Own())


def test_an_error_in_one_process_is_the_one_that_is_told() -> None:
    def fail(_: Own, problem: LinearProblem) -> Solution:
        if problem.group.rank == 1:
            raise ZeroDivisionError
        return plain(problem)

    rounder(Own, needs_hessian=False)(fail)
    with pytest.raises(ZeroDivisionError):
        check_rounder(Own())


def in_double(problem: ChannelProblem) -> Tensor:
    return problem.largest.double() + 1


def not_above_zero(problem: ChannelProblem) -> Tensor:
    return problem.largest


def one_too_few(problem: ChannelProblem) -> Tensor:
    return problem.largest[1:] + 1


def written_to(problem: ChannelProblem) -> Tensor:
    return problem.largest.add_(1).clone()


def drawn(problem: ChannelProblem) -> Tensor:
    return torch.rand_like(problem.largest) + 1


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (in_double, r"s is torch\.float64"),
        (one_too_few, r"\[127\], not float32 \[128\]"),
        (not_above_zero, "channels that are always 0: 43 of 128 scales"),
        (written_to, "the problem was written to"),
        (drawn, "other scales the second time"),
    ],
)
def test_what_is_wrong_with_a_transform_is_said(
    method: Callable[[ChannelProblem], Tensor], words: str
) -> None:
    scaling(Own)(lambda _, problem: method(problem))
    with pytest.raises(AssertionError, match=words):
        check_transform(Own())
