"""SmoothQuant (Xiao et al., arXiv 2211.10438): outliers of activations are moved into weights.

With s_j = max|x_j|^α / max|w_j|^(1−α) a channel that dwarfs the others, and costs them their int8 steps, is
made smaller, and its weights, which have no outliers, larger. The authors use α from 0.5 for OPT to 0.9 for
Llama-2 70B. Here it is searched for the layers that read the same channels, by the error of their outputs;
not smoothing is among the candidates. A number fixes it.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from qdeploy.methods.grid import fit
from qdeploy.methods.scaling import ChannelProblem, scaling
from qdeploy.rounded_inputs import rounded as round_activations

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SmoothQuant:
    """SmoothQuant."""

    alpha: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            description="How much of the outliers moves into the weights; null searches, layer by layer.",
        ),
    ] = None


@scaling(SmoothQuant)
def smooth(config: SmoothQuant, problem: ChannelProblem) -> Tensor:
    """The s of the layers that read the same channels."""
    if config.alpha is not None:
        return _scales(config.alpha, problem)
    if not len(problem.sample):
        return torch.ones_like(problem.largest)
    candidates = [torch.ones_like(problem.largest), *(_scales(alpha, problem) for alpha in ALPHAS)]
    errors = torch.stack([_error(problem.possible(s), problem) for s in candidates])
    return candidates[int(errors.argmin())]


def _scales(alpha: float, problem: ChannelProblem) -> Tensor:
    """max|x_j|^α / max|w_j|^(1−α), and 1 for a channel that no token or no weight uses."""
    weights = torch.stack([weight.abs().amax(0) for weight in problem.weights]).amax(0)
    s = problem.largest.pow(alpha) / weights.pow(1 - alpha)
    return torch.where((problem.largest > 0) & (weights > 0), s, 1.0)


def _error(s: Tensor, problem: ChannelProblem) -> Tensor:
    """Squared error of the layers' outputs on the sample, weights and activations rounded to nearest."""
    x = problem.sample / s
    if problem.scheme.activations is not None:
        x = round_activations(x, problem.scheme.activations)
    lost = torch.zeros((), device=s.device)
    for weight in problem.weights:
        scaled = weight * s
        rounded = fit(scaled, problem.scheme).nearest(scaled).dequantize()
        lost += (x @ rounded.T - problem.sample @ weight.T).square().sum()
    return lost
