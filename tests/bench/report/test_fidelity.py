"""Which fidelity figures stand beside each other."""

from __future__ import annotations

from qdeploy.bench.records import Estimate
from qdeploy.bench.report.fidelity import bound, warnings
from tests.bench.report.conftest import fidelity

LOOSE, TIGHT = Estimate(value=0.02), Estimate(value=0.03)
BASELINE = fidelity(quantized=False)
INTERSECTION = fidelity(quantized=True).model_copy(
    update={"method": "intersection", "kl_lower_bound": LOOSE, "kl_intersection": LOOSE}
)
TWO_PASS = INTERSECTION.model_copy(update={"method": "two-pass", "kl_lower_bound": TIGHT})


def test_one_method_shows_its_own_bound() -> None:
    assert bound(TWO_PASS, [BASELINE, TWO_PASS, TWO_PASS]) == TIGHT
    assert bound(INTERSECTION, [BASELINE, INTERSECTION]) == LOOSE
    assert warnings([BASELINE, TWO_PASS]) == []


def test_methods_are_never_mixed() -> None:
    both = [BASELINE, TWO_PASS, INTERSECTION]
    assert bound(TWO_PASS, both) == bound(INTERSECTION, both) == LOOSE
    assert any("different methods" in warning for warning in warnings(both))


def test_protocols_and_numbers_of_tokens_that_differ_are_pointed_out() -> None:
    other = TWO_PASS.model_copy(update={"protocol": "llama.cpp", "top_k": 7})
    first, second = warnings([TWO_PASS, other])
    assert "different protocols" in first and "K, are not comparable" in second
