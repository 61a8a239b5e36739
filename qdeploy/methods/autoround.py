"""AutoRound (Cheng et al., arXiv 2309.05516): a block's rounding, tuned by the signs of gradients.

    Ŵ = s·(clip(⌊W/s + z + V⌉) − z),   s = (α·max W − β·min W) / (2^b − 1),   z = ⌊−β·min W / s⌉

V in [−½, ½], one number for each weight, decides which way it is rounded; α and β up to 1, one of each for a
group, how much of its range the grid spans (one for both ends where it is symmetric). V begins at 0, α and β
at 1, and all move against the sign of the gradient of the squared error of what the whole block puts out,
1/iterations of a step at first and linearly less, so that V could just go from one end to the other. The
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
from qdeploy.methods.grid import fit
from qdeploy.methods.tuning import BlockProblem, TunedLayer, tuner
from qdeploy.quantized import QuantizedLinear, portable_scales
from qdeploy.schemes import Scheme

EVERY = 20
"""Steps after which it is seen how good the block is."""

EVALUATED = 8
"""Samples of each process that this is seen on."""

LEAST = 0.5
"""Of a group's range, that its grid spans; as far as α and β get from 1 in all steps together."""

LEVELS = 15
"""Of the widest grid whose ends move as V does. Of wider ones they move no more levels in a step."""


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
    """V = 0, α = β = 1: round one layer to nearest.

    Not with scales searched for the least error of the weights, which cut off the largest: on texts unlike
    the calibration's nothing makes up for that.
    """
    quantized = fit(problem.weight, problem.scheme).nearest(problem.weight)
    return Solution(quantized, relative_error(problem, quantized))


@tuner(AutoRound)
def autoround(config: AutoRound, problem: BlockProblem) -> Mapping[str, QuantizedLinear]:
    """Tune V, α and β of all layers of a block."""
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
    """V, α and β of one layer."""

    def __init__(self, layer: TunedLayer) -> None:
        self.best, self._share = layer.quantized, layer.share
        n, groups = self.best.scales.shape
        self._scheme, self._top = self.best.scheme, self.best.scheme.qmax
        self._w = layer.weight.view(n, groups, -1)
        self._low, self._high = _ends(self._w, self._scheme)
        self._v = torch.zeros_like(self._w)
        self._alpha = torch.ones_like(self._high)
        self._beta = self._alpha if self._scheme.symmetric else torch.ones_like(self._low)

    def weight(self) -> Tensor:
        """Ŵ [N, K] for V, α and β as they are."""
        low = self._beta * self._low
        self._s = portable_scales((self._alpha * self._high - low) / self._top)
        self._z = torch.full_like(low, self._scheme.zero)
        if not self._scheme.symmetric:
            exact = -low / self._s.float()
            self._z = exact.round().clamp(0, self._top)
            self._left = exact - self._z
        self._x = self._w / self._s.float()
        rounded = (self._x + self._v).add_(self._z).round_()
        self._codes = rounded.clamp(0, self._top)
        self._inside = rounded == self._codes
        return ((self._codes - self._z) * self._s.float()).flatten(1)

    def step(self, gradient: Tensor, rate: float) -> None:
        """Move V, α and β against the signs of what the gradient [N, K] of the last `weight` makes of theirs.

        Rounding counts as the identity, so that a weight whose code is at neither end moves with s by what
        rounding adds to W/s. One that is cut off at an end moves with that end, and V moves it not at all.
        """
        g = gradient.view_as(self._v)
        # An expert that few tokens reach must not follow them as far.
        rate *= self._share
        ends = rate * min(1.0, LEVELS / self._top)
        added = (self._codes - self._z).sub_(self._x).mul_(self._inside).mul_(g).sum(-1, keepdim=True)
        outside = ~self._inside
        above = (g * (outside & (self._codes > 0))).sum(-1, keepdim=True)
        below = (g * (outside & (self._codes == 0))).sum(-1, keepdim=True)
        self._v.addcmul_(g.sign(), self._inside, value=-rate).clamp_(-0.5, 0.5)
        if self._scheme.symmetric:
            middle = self._scheme.zero
            self._move(self._alpha, added + (self._top - middle) * above - middle * below, ends)
        else:
            # The ends of the grid are off those of the range by what rounding z leaves.
            added += self._left * (above + below)
            self._move(self._alpha, (added + self._top * above) * self._high, ends)
            self._move(self._beta, (self._top * below - added) * self._low, ends)

    def _move(self, end: Tensor, gradient: Tensor, rate: float) -> None:
        end.sub_(gradient.sign(), alpha=rate).clamp_(LEAST, 1)

    def keep(self) -> None:
        """Remember the last `weight` as the best so far."""
        codes = self._codes.to(torch.uint8).flatten(1)
        zeros = None if self._scheme.symmetric else self._z.to(torch.uint8).squeeze(-1)
        self.best = replace(self.best, stored=codes, scales=self._s.squeeze(-1), zeros=zeros)


def _ends(groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """The least and the largest number that groups [N, G, K/G] need, [N, G, 1]; 0 is between them."""
    if scheme.symmetric:
        size = groups.abs().amax(-1, keepdim=True)
        return -size, size
    return groups.amin(-1, keepdim=True).clamp_max(0), groups.amax(-1, keepdim=True).clamp_min(0)
