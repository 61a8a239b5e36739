"""Agreement with a baseline on a text, token by token."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qdeploy.bench.records.base import Estimate, Record

Method = Literal["two-pass", "intersection", "none"]
"""How a divergence was bounded (`bench/fidelity/divergence.py`)."""


class TokenStatistics(Record):
    """Agreement token by token, as llama.cpp tabulates it: nats, and Δp = p(variant) − p(baseline).

    `design_effect` is the variance of the mean ln p difference over windows against that of as many
    independent tokens.
    """

    ln_perplexity_correlation: float | None
    ln_perplexity_ratio: Estimate
    perplexity_difference: Estimate
    design_effect: float | None
    kl_percentiles: dict[str, float]
    dp_mean: Estimate
    dp_rms: Estimate
    dp_percentiles: dict[str, float]


class Candidate(Record):
    """A token as text and its probability."""

    token: str
    p: float


class Disagreement(Record):
    """A position of the text where the models diverge: what came before, and what either expected.

    `token` is what the text has there, with its probability in each model; `baseline` and `variant` hold the
    likeliest tokens of each.
    """

    window: int
    position: int
    kl: float
    context: str
    token: str
    p_baseline: float
    p_variant: float
    baseline: list[Candidate]
    variant: list[Candidate]


class MonteCarlo(Record):
    """The divergence over the whole vocabulary, estimated on what the baseline itself writes.

    `log_ratio` is the mean of ln p − ln q over the sampled tokens, `k3` that of q/p − 1 − ln(q/p), and
    `kl_lower_bound` the bound at the same positions, which they should not be below.
    """

    samples: int
    prompt_tokens: int
    positions: int
    method: Method
    log_ratio: Estimate
    k3: Estimate
    kl_lower_bound: Estimate


class Fidelity(Record):
    """Agreement with the baseline on a text, token by token, both models behind HTTP.

    `kl_intersection` is the bound that every engine's figures allow, for comparing variants whose `method`
    differs.
    """

    text: str
    text_sha256: str
    protocol: str = "stream"
    windows: int
    window_tokens: int
    positions: int
    top_k: int
    method: Method
    perplexity: Estimate
    word_perplexity: Estimate | None = None
    byte_perplexity: Estimate | None = None
    bits_per_byte: Estimate | None = None
    baseline_perplexity: Estimate | None = None
    perplexity_ratio: Estimate | None = None
    kl_lower_bound: Estimate | None = None
    kl_intersection: Estimate | None = None
    tail_mass: float | None = None
    same_top_token: Estimate | None = None
    per_window_kl: list[float] = Field(default_factory=list)
    tokens: TokenStatistics | None = None
    worst: list[Disagreement] = Field(default_factory=list)
    monte_carlo: MonteCarlo | None = None
