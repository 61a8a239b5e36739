"""Harm as it is: the KL divergence of the model with one unit rounded, all else in 16 bit.

KL(p ‖ p') = Σ_v p(v) · (log p(v) − log p'(v)) over the whole vocabulary, mean over all positions. From its
block on a rounded unit's hidden states are its own; all of them go through the model side by side, so that
each block is read once. The work grows with the square of the model's depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from qdeploy.modeling.activations import Activations
from qdeploy.modeling.inputs import BlockCall
from qdeploy.modeling.outputs import output_head
from qdeploy.progress import Task
from qdeploy.sensitivity.candidates import Choice
from qdeploy.sensitivity.harm import Harm, Harms
from qdeploy.sensitivity.rounding import Rounding
from qdeploy.sensitivity.subject import Recorded
from qdeploy.sensitivity.units import Unit


@torch.no_grad()
def measured_harms(recorded: Recorded, task: Task) -> Harms:
    """The harm of each unit in each scheme; a step of `task` for each block, and for each harm and batch.

    Raises:
        CheckpointError: a weight is not finite.
        OutputError: the disk is full.
    """
    subject, trials = recorded.subject, recorded.subject.trials
    states = recorded.like(len(trials))
    for i, call in enumerate(recorded.calls):
        with subject.materialized(call.block):
            rounding = Rounding(recorded, i)
            for v, (unit, scheme) in enumerate(trials):
                if unit.block == call.block.name:
                    with rounding.rounded(dict.fromkeys(unit.layers, scheme)):
                        _leave(recorded, i, call, states, v)
                elif _is_before(recorded, unit, i):
                    _pass(recorded, call, states, v)
        task.advance()
    return dict(
        zip(
            ((unit.name, scheme) for unit, scheme in trials),
            _divergences(recorded, states, len(trials), task),
            strict=True,
        )
    )


@torch.no_grad()
def measured_together(recorded: Recorded, assignment: Mapping[str, Choice], task: Task) -> Harm:
    """The harm of all units in their schemes at once; a step of `task` for each block and each batch.

    Args:
        assignment: unit → its scheme.
    """
    subject = recorded.subject
    states = recorded.like(1)
    for batch in recorded.batches():
        states[batch] = recorded.before(0, batch)
    for i, call in enumerate(recorded.calls):
        schemes = {
            name: scheme
            for unit in subject.inside(call.block)
            if (scheme := assignment[unit.name]) is not None
            for name in unit.layers
        }
        with subject.materialized(call.block), Rounding(recorded, i).rounded(schemes):
            _pass(recorded, call, states, 0)
        task.advance()
    (harm,) = _divergences(recorded, states, 1, task)
    return harm


def _is_before(recorded: Recorded, unit: Unit, block: int) -> bool:
    return any(unit.block == earlier.name for earlier in recorded.subject.blocks[:block])


def _leave(recorded: Recorded, i: int, call: BlockCall, states: Activations, v: int) -> None:
    """Run block i on the 16-bit model's states, into copy v."""
    for batch in recorded.batches():
        entering = recorded.before(i, batch).to(recorded.subject.device)
        states[_copy(recorded, v, batch)] = call(entering).cpu()


def _pass(recorded: Recorded, call: BlockCall, states: Activations, v: int) -> None:
    """Run a block on copy v of the states."""
    for batch in recorded.batches():
        place = _copy(recorded, v, batch)
        states[place] = call(states[place].to(recorded.subject.device)).cpu()


def _copy(recorded: Recorded, v: int, batch: slice) -> slice:
    return slice(v * recorded.samples + batch.start, v * recorded.samples + batch.stop)


def _divergences(recorded: Recorded, states: Activations, copies: int, task: Task) -> Iterator[Harm]:
    """KL of each copy of the states that left the last block."""
    subject = recorded.subject
    kl = torch.zeros(copies, recorded.samples, dtype=torch.float64)
    with output_head(subject.model, subject.blocks, subject.reader, subject.device) as head:
        for batch in recorded.batches():
            p = head(recorded.before(len(subject.blocks), batch).to(subject.device)).float().log_softmax(-1)
            for v in range(copies):
                q = head(states[_copy(recorded, v, batch)].to(subject.device)).float().log_softmax(-1)
                # Divergences are never negative, though their rounded sums can be.
                kl[v, batch] = (p.exp() * (p - q)).sum(-1).double().mean(-1).clamp_min(0).cpu()
                task.advance()
    for found in kl:
        yield Harm.mean(found)
