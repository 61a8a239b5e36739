"""AWQ (Lin et al., arXiv 2306.00978): the weights of channels that matter are made larger before rounding.

A channel with large inputs loses most by the rounding of its weights; scaled up with s_j > 1 they take more
of their group's steps. Candidates are s_j = x̄_j^r / w̄_j^(1−r), with x̄ the mean size of the inputs and w̄
that of the weights relative to their group's largest, for r from 0 to below 1, and not scaling at all. The
one is taken with which layers rounded to nearest change least of what they make together: attention's
output for q, k and v, the MLP's for gate and up, their own for others. Before rounding to nearest the largest
weights of a group are then cut off: see `qdeploy.methods.clipping`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from qdeploy.methods.grid import fit
from qdeploy.methods.scaling import ChannelProblem, scaling
from qdeploy.schemes import Scheme


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AWQ:
    """Activation-aware weight quantization's scales."""

    steps: Annotated[int, Field(ge=1, le=100, description="How many r from 0 to below 1 are tried.")] = 20
    clip: Annotated[
        bool,
        Field(description="Cut off a group's largest weights where that helps; not before gptq and alike."),
    ] = True


@scaling(AWQ, clips=lambda config: config.clip)
def scale_what_matters(config: AWQ, problem: ChannelProblem) -> Tensor:
    """The s of the layers that read the same channels."""
    sizes = _relative_sizes(problem.weights, problem.scheme)
    candidates = [torch.ones_like(sizes)]
    for step in range(config.steps):
        s = problem.possible(_scales(step / config.steps, problem.mean, sizes))
        if not any(torch.equal(s, other) for other in candidates):
            candidates.append(s)
    errors = [problem.error(_rounded(s, problem)) for s in candidates]
    return candidates[errors.index(min(errors))]


def _scales(r: float, inputs: Tensor, weights: Tensor) -> Tensor:
    """x̄^r / w̄^(1−r) around 1, and 1 for a channel that no token or no weight uses."""
    used = (inputs > 0) & (weights > 0)
    if not used.any():
        return torch.ones_like(inputs)
    s = inputs**r / weights ** (1 - r)
    middle = (s[used].amax() * s[used].amin()).sqrt()
    return torch.where(used, s / middle, 1.0)


def _relative_sizes(weights: Sequence[Tensor], scheme: Scheme) -> Tensor:
    """Mean over all rows of |w| relative to the largest of its group, float32 [K]."""
    whole = torch.cat(list(weights)).abs()
    groups = whole.view(len(whole), scheme.groups(whole.shape[1]), -1)
    return (groups / groups.amax(-1, keepdim=True).clamp_min(torch.finfo(whole.dtype).tiny)).mean(0).flatten()


def _rounded(s: Tensor, problem: ChannelProblem) -> list[Tensor]:
    """What the layers compute with when their weights are scaled, rounded to nearest and scaled back."""
    return [fit(w * s, problem.scheme).nearest(w * s).dequantize() / s for w in problem.weights]
