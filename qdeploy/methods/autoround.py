"""AutoRound (Cheng et al., arXiv 2309.05516): a block's rounding, tuned by the signs of gradients.

    Ŵ = s·(clip(⌊W/s + z + V⌉) − z),   s = s₀·(1 + γ),   V in [−½, ½]

V, one number for each weight, decides which way it is rounded; γ, one for each group, how wide its grid is.
Both begin at 0 and move against the sign of the gradient of the squared error of what the whole block puts
out, 1/iterations of a step at first and linearly less, so that V could just go from one end to the other. The
block reads what the quantized blocks before it put out; the 16-bit model's block says what is to come out.
The best of the states seen is kept, by the error on EVALUATED samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from qdeploy.methods.base import LinearProblem, Solution, relative_error, rounder
from qdeploy.methods.grid import search
from qdeploy.methods.tuning import BlockProblem, TunedLayer, tuner
from qdeploy.quantized import QuantizedLinear, portable_scales
from qdeploy.schemes import Scheme

EVERY = 20
"""Steps after which it is seen how good the block is."""

EVALUATED = 8
"""Samples of each process that this is seen on."""

MOST = 0.5
"""The furthest that γ goes, either way."""


def _refusal(scheme: Scheme) -> str | None:
    if scheme.element is not None:
        return "it tunes the rounding of integers. Take a scheme such as W4A16, or gptq"
    return None


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class AutoRound:
    """AutoRound: rounding and scales of a block's layers, tuned on what the block puts out."""

    iterations: Annotated[
        int, Field(ge=1, le=10_000, description="Steps for each block (paper: 200; light 50, best 1000).")
    ] = 200
    batch: Annotated[int, Field(ge=1, le=1024, description="Samples for each step.")] = 8
    seed: Annotated[int, Field(ge=0, description="Chooses them.")] = 0


@rounder(AutoRound, needs_hessian=False, refusal=_refusal)
def begin(_: AutoRound, problem: LinearProblem) -> Solution:
    """V = 0: round one layer to nearest, with searched scales."""
    quantized = search(problem.weight, problem.scheme).nearest(problem.weight)
    return Solution(quantized, relative_error(problem, quantized))


@tuner(AutoRound)
def autoround(config: AutoRound, problem: BlockProblem) -> Mapping[str, QuantizedLinear]:
    """Tune V and γ of all layers of a block."""
    layers = {name: _Tuned(layer) for name, layer in problem.layers.items()}
    errors = _Errors(problem, config)
    _put(problem, layers)
    best = errors.evaluated()
    for step in range(config.iterations):
        _descend(problem, layers, errors, (1 - step / config.iterations) / config.iterations)
        if step % EVERY == EVERY - 1 or step == config.iterations - 1:
            _put(problem, layers)
            found = errors.evaluated()
            if found < best:
                best = found
                for layer in layers.values():
                    layer.keep()
    for name, layer in layers.items():
        problem.layers[name].put(layer.best.dequantize())
    return {name: layer.best for name, layer in layers.items()}


def _descend(problem: BlockProblem, layers: Mapping[str, _Tuned], errors: _Errors, rate: float) -> None:
    """One step of the signs."""
    weights = _put(problem, layers, tracked=True)
    with torch.enable_grad():
        for error in errors.of_a_batch():
            torch.autograd.backward(error, inputs=[*weights.values()])
    for name, weight in weights.items():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        problem.group.add(gradient)
        columns = problem.layers[name].columns
        layers[name].step(gradient if columns is None else gradient / columns, rate)


def _put(problem: BlockProblem, layers: Mapping[str, _Tuned], *, tracked: bool = False) -> dict[str, Tensor]:
    """Let the block run with Ŵ; returns the weights that it now has, new ones each time."""
    for name, layer in layers.items():
        problem.layers[name].put(layer.weight())
    found: dict[str, Tensor] = {name: problem.layers[name].linear.weight for name in layers}
    for weight in found.values():
        weight.requires_grad_(tracked)
    return found


class _Errors:
    """Squared errors of what a block puts out: for samples drawn at random, and for some that stay."""

    def __init__(self, problem: BlockProblem, config: AutoRound) -> None:
        self._problem, own = problem, problem.inputs.shape[0]
        part = problem.group.part(config.batch)
        self._batch, self._own = part.stop - part.start, own
        self._generator = torch.Generator().manual_seed(config.seed)
        self._evaluated = range(0, own, max(1, own // EVALUATED))

    def of_a_batch(self) -> Iterator[Tensor]:
        """Of this process's samples of the next batch, each by itself."""
        for sample in torch.randperm(self._own, generator=self._generator)[: self._batch].tolist():
            yield self._of(sample)

    def evaluated(self) -> float:
        """Of the samples that stay the same, in all processes."""
        return self._problem.group.totals(sum(float(self._of(sample)) for sample in self._evaluated))[0]

    def _of(self, sample: int) -> Tensor:
        """The mean squared error of what comes out for one sample."""
        one, problem = slice(sample, sample + 1), self._problem
        device = next(iter(problem.layers.values())).weight.device
        wanted = problem.outputs[one].to(device)
        found = problem.run(problem.inputs[one].to(device))
        return (found - wanted).square().mean()


class _Tuned:
    """V and γ of one layer."""

    def __init__(self, layer: TunedLayer) -> None:
        self.best, self._share = layer.quantized, layer.share
        n, groups = self.best.scales.shape
        self._s0 = self.best.steps.unsqueeze(-1)
        middle = self.best.scheme.zero if self.best.zeros is None else self.best.zeros.float().unsqueeze(-1)
        self._z, self._top = middle, self.best.scheme.qmax
        self._w = layer.weight.view(n, groups, -1)
        self._v = torch.zeros_like(self._w)
        self._gamma = torch.zeros_like(self._s0)

    def weight(self) -> Tensor:
        """Ŵ [N, K] for V and γ as they are."""
        self._s = portable_scales(self._s0 * (1 + self._gamma))
        self._x = self._w / self._s.float()
        rounded = (self._x + self._v).add_(self._z).round_()
        self._codes = rounded.clamp(0, self._top)
        self._inside = rounded == self._codes
        return ((self._codes - self._z) * self._s.float()).flatten(1)

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move V and γ against the signs of what the gradient [N, K] of the last `weight` makes of theirs.

        Rounding counts as the identity: where no code is at an end of its range dŴ/ds is what rounding adds
        to W/s, elsewhere the code itself, and V moves nothing.
        """
        g = gradient.view_as(self._v)
        # An expert that few tokens reach must not follow them as far.
        rate *= self._share
        moved = (self._codes - self._z).addcmul_(self._x, self._inside, value=-1)
        widths = (moved * g).sum(-1, keepdim=True)
        self._v.addcmul_(g.sign(), self._inside, value=-rate).clamp_(-0.5, 0.5)
        self._gamma.sub_(widths.sign(), alpha=rate).clamp_(-MOST, MOST)

    def keep(self) -> None:
        """Remember the last `weight` as the best so far."""
        codes = self._codes.to(torch.uint8).flatten(1)
        self.best = replace(self.best, codes=codes, scales=self._s.squeeze(-1))
