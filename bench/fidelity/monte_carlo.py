"""A cross-check of the divergence bound, on text that the baseline writes.

x ~ P is drawn from the baseline as it is, and both models score it. ln p(x) − ln q(x) has the mean KL(P ‖ Q)
over the whole vocabulary: nothing is lumped. So has k3 = r − 1 − ln r with r = q(x)/p(x), which is never
negative and varies less (Schulman 2020, "Approximating KL divergence"). The positions are not those of the
text, and so the bound is taken again at these.

Both probabilities come from scoring the finished sequence: an engine decodes with other arithmetic than it
reads a prompt with, and that difference is not the variant's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from qdeploy.bench import statistics
from qdeploy.bench.fidelity.figures import best_divergence
from qdeploy.bench.fidelity.token_table import TokenTable
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.bench.records import MonteCarlo
from qdeploy.engines.endpoint import Endpoint
from qdeploy.progress import progress

SAMPLES = "samples.parquet"
PROMPT_TOKENS, SAMPLE_TOKENS = 64, 128
"""The start of a window that a sample continues, at most half of it; the most tokens that are drawn."""


def draw(endpoint: Endpoint, windows: Windows, count: int, concurrency: int) -> Windows:
    """`count` continuations by the model itself of the windows' beginnings, in turn.

    Raises:
        EndpointError: the endpoint fails, or does not tell the ids of the tokens that it generates.
    """
    prompts = _prompts(windows, count)
    with progress("Sampling", count) as bar:
        drawn = endpoint.sample_many(prompts, SAMPLE_TOKENS, concurrency, lambda _i, _tokens: bar.advance())
    return _sequences(windows, prompts, drawn)


def continued(windows: Windows, table: TokenTable) -> Windows:
    """The sequences of a table of samples, which holds the drawn tokens alone."""
    drawn = [part.tolist() for part in np.split(table.token, np.flatnonzero(np.diff(table.window)) + 1)]
    return _sequences(windows, _prompts(windows, len(drawn)), drawn)


def _prompts(windows: Windows, count: int) -> list[list[int]]:
    chosen = [windows.tokens[i % len(windows.tokens)] for i in range(count)]
    return [tokens[: min(PROMPT_TOKENS, (len(tokens) + 1) // 2)] for tokens in chosen]


def _sequences(windows: Windows, prompts: Sequence[list[int]], drawn: Sequence[list[int]]) -> Windows:
    tokens = [[*prompt, *more] for prompt, more in zip(prompts, drawn, strict=True)]
    return replace(windows, tokens=tokens, starts=[len(prompt) for prompt in prompts], documents=None)


def estimate(windows: Windows, table: TokenTable, baseline: TokenTable) -> MonteCarlo:
    """The estimates from samples that both models scored; intervals by the window that a sample continues."""
    labels = [str(index % len(windows.tokens)) for index in table.window]
    log_ratio = baseline.logprob.astype(np.float64) - table.logprob
    method, found = best_divergence(baseline, table)
    return MonteCarlo(
        samples=int(table.window[-1]) + 1,
        prompt_tokens=max(map(len, _prompts(windows, len(windows.tokens)))),
        positions=len(table.token),
        method=method,
        log_ratio=statistics.mean_interval(log_ratio, labels),
        k3=statistics.mean_interval(np.expm1(-log_ratio) + log_ratio, labels),
        kl_lower_bound=statistics.mean_interval(found.kl, labels),
    )
