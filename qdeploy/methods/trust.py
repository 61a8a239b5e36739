"""How far a Hessian is trusted: less where few tokens made it, not at all where it cannot be factorized.

Rounders that work with H share this, so that the same calibration ends in the same words whichever is asked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qdeploy.methods.base import LinearProblem, Solution
from qdeploy.methods.hessian import LARGEST_DAMP, Factor, Hessian, Order
from qdeploy.methods.rtn import RTN, round_to_nearest


@dataclass(frozen=True)
class Trusted:
    """A Hessian that can be used.

    Attributes:
        factor: of H, shrunk the further the less it is trusted.
        share: from 0 with no token to 1 from as many tokens as columns on.
        few: that H was shrunk further than asked for; None if it was not.
    """

    factor: Factor
    share: float
    few: str | None


def trusted(
    method: str, problem: LinearProblem, damp: float, shrinkage: float, order: Order
) -> Trusted | str:
    """Factorize H as far as it can be trusted.

    Args:
        method: its name, for messages.
        damp, shrinkage, order: as of `Hessian.factor`; with fewer tokens than columns H is shrunk further.

    Returns:
        The Hessian, or why it cannot be used.
    """
    hessian = problem.hessian
    if hessian is None or not hessian.tokens:
        return "no calibration token reached it"
    share = hessian.share
    shrunk = shrinkage + (1 - shrinkage) * (1 - share)
    factor = hessian.factor(damp, shrunk, order)
    if factor is None:
        return _unusable(hessian, damp)
    few = f"{method}: {problem.name}: {_few(hessian, shrunk, shrinkage)}" if shrunk > shrinkage else None
    return Trusted(factor, share, few)


def nearest_instead(method: str, problem: LinearProblem, reason: str, *, grid: bool) -> Solution:
    """Round to nearest, and say that it was done for this reason; `grid` as of `RTN`."""
    # An unusable H cannot measure the error either.
    solution = round_to_nearest(RTN(grid=grid), replace(problem, hessian=None))
    return replace(solution, fallback=f"{method}: {problem.name}: {reason}; rounded to nearest instead")


def _few(hessian: Hessian, shrunk: float, asked: float) -> str:
    return (
        f"only {hessian.tokens} calibration tokens for {len(hessian.diagonal)} columns; H was "
        f"shrunk by {shrunk:.2f} toward its diagonal, not {asked:g}"
    )


def _unusable(hessian: Hessian, damp: float) -> str:
    if not hessian.finite:
        return f"its calibration inputs hold NaN or infinity ({hessian.tokens} tokens)"
    return (
        f"its Hessian is not positive definite ({hessian.dead} of {len(hessian.diagonal)} columns dead, "
        f"{hessian.tokens} tokens, damp {damp:g} retried up to {LARGEST_DAMP:g})"
    )
