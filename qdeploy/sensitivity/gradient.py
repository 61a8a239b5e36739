"""Harm from gradients: one backward pass for all units and schemes.

Rounding changes what layer l puts out for token t by Δy_lt = Ŵx̂ − Wx: x̂ is x, rounded to int8 where the
scheme has int8 activations. To second order the predictions p_s of position s move by

    KL(p_s ‖ p'_s) = ½ · E[d_s²],   d_s = Σ_lt ∂log p_s(v_s)/∂y_lt · Δy_lt,   v_s drawn from p_s,

because the Hessian of KL at p' = p is the Fisher information, the second moment of the score. Draw a label
v_s at every position, each from its own p_s, and let g_lt = ∂(Σ_s log p_s(v_s))/∂y_lt: one backward. Then

    D = Σ_lt g_lt · Δy_lt = Σ_s d_s.

The text is given, so that the labels decide nothing but these d_s: they are independent of each other, and
E[d_s] = 0, as for every score. Hence E[D²] = Σ_s E[d_s²], and

    ½ · E[D²] / T   is the mean over positions of KL(p_s ‖ p'_s), up to third order in Δy.

The sum over positions has to be inside the square: g_lt gathers what position t does to all later ones, which
through attention act together. Σ_t (g_lt·Δy_lt)², with the square inside, leaves those products out.

D is a sum of many independent terms, so nearly normal, and D² has a relative spread of √2: n = samples ·
draws estimates have one of √(2/n), 12.5 % for 128. Text is run once, and once backwards for each draw; an
output's change Δy is computed once for all draws. Nothing is kept of a block when the next is at work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdeploy.modeling.inputs import BlockCall
from qdeploy.modeling.outputs import output_head
from qdeploy.modeling.products import product_dtype
from qdeploy.progress import Task
from qdeploy.rounded_inputs import rounded as round_activations
from qdeploy.schemes import Scheme
from qdeploy.sensitivity.harm import Harm, Harms
from qdeploy.sensitivity.rounding import Rounding
from qdeploy.sensitivity.subject import Recorded
from qdeploy.sensitivity.units import Unit

Seen = dict[str, tuple[Tensor, Tensor]]
"""Layer → what it read and what it put out for one sample, [..., K] and [..., N]."""


def gradient_harms(recorded: Recorded, draws: int, seed: int, task: Task) -> Harms:
    """The harm of each unit in each scheme.

    Args:
        draws: sets of labels that are drawn for each sample.
        seed: of the labels.
        task: advanced by a step for the output head and one for each block.

    Raises:
        CheckpointError: a weight is not finite.
    """
    subject = recorded.subject
    pulls = _at_the_outputs(recorded, draws, seed)
    task.advance()
    harms: dict[tuple[str, Scheme], Harm] = {}
    for i in reversed(range(len(subject.blocks))):
        block, units = subject.blocks[i], subject.inside(subject.blocks[i])
        with subject.materialized(block):
            changes = _Changes(block.linears(), units, subject.schemes, Rounding(recorded, i))
            for s in range(recorded.samples):
                states = recorded.before(i, slice(s, s + 1)).to(subject.device)
                pulls[s] = changes.pull(recorded.calls[i], states, pulls[s].to(subject.device)).cpu()
        harms |= changes.harms(subject.tokens.shape[1])
        task.advance()
    return {(unit.name, scheme): harms[unit.name, scheme] for unit, scheme in subject.trials}


def _at_the_outputs(recorded: Recorded, draws: int, seed: int) -> Tensor:
    """Gradients of labels' log-probabilities by what leaves the last block, float32 [S, R, 1, T, D]."""
    subject = recorded.subject
    generator = torch.Generator(subject.device).manual_seed(seed)
    pulls = []
    with output_head(subject.model, subject.blocks, subject.reader, subject.device) as head:
        for s in range(recorded.samples):
            states = recorded.before(len(subject.blocks), slice(s, s + 1)).to(subject.device)
            states.requires_grad_()
            logp = head(states).float().log_softmax(-1)
            labels = torch.multinomial(logp.detach()[0].exp(), draws, replacement=True, generator=generator)
            likelihoods = logp[0].gather(-1, labels).sum(0)
            pulls.append(torch.stack(list(_each(likelihoods, states))).cpu())
    return torch.stack(pulls)


def _each(likelihoods: Tensor, states: Tensor) -> Iterator[Tensor]:
    for r, likelihood in enumerate(likelihoods):
        yield torch.autograd.grad(likelihood, states, retain_graph=r + 1 < len(likelihoods))[0]


class _Changes:
    """D of every unit of a materialized block in every scheme, for all samples and draws.

    Args:
        linears: full name → layer of the block.
        units: the block's.
        schemes: unit → what it is tried in.
        rounding: what rounds the layers.
    """

    def __init__(
        self,
        linears: Mapping[str, nn.Linear],
        units: Sequence[Unit],
        schemes: Mapping[str, Sequence[Scheme]],
        rounding: Rounding,
    ) -> None:
        self._units = [unit for unit in units if schemes[unit.name]]
        self._linears = {name: linears[name] for unit in self._units for name in unit.layers}
        self._schemes = {name: schemes[unit.name] for unit in self._units for name in unit.layers}
        self._errors = {name: self._rounding_errors(name, rounding) for name in self._linears}
        self._found: dict[str, list[Tensor]] = {unit.name: [] for unit in self._units}

    def _rounding_errors(self, name: str, rounding: Rounding) -> list[Tensor]:
        """Ŵ − W [N, K] in each scheme."""
        layer = self._linears[name]
        dtype = product_dtype(layer.weight.device)
        return [(rounding.weight(name, scheme) - layer.weight).to(dtype) for scheme in self._schemes[name]]

    def pull(self, call: BlockCall, states: Tensor, pulls: Tensor) -> Tensor:
        """Go back through the block with the gradients of one sample's outputs.

        Args:
            states: [1, T, D] that enter the block.
            pulls: [R, 1, T, D], gradients by what leaves it.

        Returns:
            Gradients by what enters it.
        """
        states.requires_grad_()
        with _watching(self._linears) as seen:
            outputs = call(states)
        moved = {name: self._moved(name, x) for name, (x, _) in seen.items()}
        dots = {name: torch.zeros(len(self._schemes[name]), len(pulls)) for name in self._linears}
        wanted = [states, *(y for _, y in seen.values())]
        entering = []
        for r, pull in enumerate(pulls):
            last = r + 1 == len(pulls)
            found, *gradients = torch.autograd.grad(
                outputs, wanted, pull, retain_graph=not last, allow_unused=True
            )
            entering.append(found)
            for name, g in zip(seen, gradients, strict=True):
                if g is not None:  # an expert that no token chose
                    dots[name][:, r] = (moved[name] @ g.flatten()).cpu()
        for unit in self._units:
            self._found[unit.name].append(torch.stack([dots[name] for name in unit.layers]).sum(0))
        return torch.stack(entering)

    def _moved(self, name: str, x: Tensor) -> Tensor:
        """Δy in each scheme, float32 [C, T · N]."""
        errors, dtype = self._errors[name], self._errors[name][0].dtype
        plain, changes = x.to(dtype), []
        for scheme, error in zip(self._schemes[name], errors, strict=True):
            if scheme.activations is None:
                change = F.linear(plain, error)
            else:
                read = round_activations(x, scheme.activations)
                weight = self._linears[name].weight.to(dtype)
                change = F.linear(read.to(dtype), error) + F.linear((read - x).to(dtype), weight)
            changes.append(change.flatten().float())
        return torch.stack(changes)

    def harms(self, length: int) -> dict[tuple[str, Scheme], Harm]:
        """½ · E[D²] / T for samples of T tokens."""
        found: dict[tuple[str, Scheme], Harm] = {}
        for unit in self._units:
            estimates = torch.cat(self._found[unit.name], 1).square() / (2 * length)
            schemes = self._schemes[next(iter(unit.layers))]
            found |= {(unit.name, s): Harm.mean(row) for s, row in zip(schemes, estimates, strict=True)}
        return found


@contextmanager
def _watching(linears: Mapping[str, nn.Linear]) -> Iterator[Seen]:
    """What layers read and put out while the `with` runs."""
    seen: Seen = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            seen[name] = args[0].detach(), y

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in linears.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
