"""What every transform must hold to."""

from __future__ import annotations

import torch

from qdeploy.methods.scaling import ChannelProblem, channel_scales
from qdeploy.testing.problems import SCHEMES, K, hard_channels


def check_transform(config: object) -> None:
    """Check the channel scaling that `config` configures.

    Whatever the layers, there is one positive, finite float32 scale for each channel, the same for the same
    problem, which is left as it was.

    Raises:
        AssertionError: it is not so.
    """
    for scheme in SCHEMES:
        for what, problem in hard_channels(scheme):
            _check(f"{scheme.describe()}, {what}", config, problem)


def _check(where: str, config: object, problem: ChannelProblem) -> None:
    held = [*problem.weights, problem.largest, problem.mean, problem.sample]
    before = [tensor.clone() for tensor in held]
    s, again = (channel_scales(config, problem) for _ in range(2))
    assert all(map(torch.equal, before, held)), f"{where}: the problem was written to; work on clones"
    right = s.dtype == torch.float32 and s.shape == (K,)
    assert right, f"{where}: s is {s.dtype} {list(s.shape)}, not float32 [{K}]"
    wrong = int((~(torch.isfinite(s) & (s > 0))).sum())
    assert not wrong, f"{where}: {wrong} of {K} scales are NaN, infinite or not above 0"
    assert torch.equal(s, again), f"{where}: other scales the second time"
