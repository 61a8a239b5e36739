"""Which fidelity figures of several variants may stand beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from qdeploy.bench.records import Estimate, Fidelity
from qdeploy.bench.report.collect import Variant


def measured(variants: Sequence[Variant]) -> list[Fidelity]:
    """The fidelity of each variant that has one."""
    return [variant.eval.fidelity for variant in variants if variant.eval and variant.eval.fidelity]


def bound(fidelity: Fidelity, others: Sequence[Fidelity]) -> Estimate | None:
    """The KL bound by the method that all share: the tightest where it is one, else the intersection's."""
    methods = {other.method for other in others if other.method != "none"}
    return fidelity.kl_lower_bound if len(methods) == 1 else fidelity.kl_intersection


def warnings(others: Sequence[Fidelity]) -> list[str]:
    """What keeps figures in the table from being compared with each other; one sentence each."""
    compared = [fidelity for fidelity in others if fidelity.method != "none"]
    found = []
    if len({(f.protocol, f.text_sha256, f.windows, f.window_tokens) for f in others}) > 1:
        found.append(
            "Perplexities of different protocols or texts are in this table: do not compare them with each "
            "other, only each with its own baseline."
        )
    if len({fidelity.method for fidelity in compared}) > 1:
        found.append(
            "The divergence was bounded by different methods. The table holds the intersection bound of all; "
            "the plots hold the bound that each run has."
        )
    if len({fidelity.top_k for fidelity in compared}) > 1:
        found.append("KL bounds from different numbers of tokens, K, are not comparable.")
    return found
