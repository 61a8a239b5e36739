"""What measuring takes of the memory, from shapes alone."""

from __future__ import annotations

from qdeploy.errors import ResourceError
from qdeploy.estimate import LATER
from qdeploy.memory import format_size, free_device, free_memory
from qdeploy.modeling.activations import BATCH_TOKENS
from qdeploy.modeling.blocks import Block
from qdeploy.modeling.outputs import outside
from qdeploy.modeling.products import product_dtype
from qdeploy.sensitivity.harm import Score
from qdeploy.sensitivity.subject import Subject

LOGITS = 5
"""Tensors as large as logits that are alive at once: logits, their logarithms and exponentials, gradients."""

GRAPH = 3
"""Tensors kept for the way back, for each number that a linear layer reads or puts out."""


def refuse_what_cannot_fit(subject: Subject, score: Score, draws: int) -> None:
    """Refuse a measurement that the machine cannot hold.

    Raises:
        ResourceError: what is short, by how much, and the smallest change.
    """
    on_device = subject.device.type != "cpu"
    free, what = (free_device() or 0, "GPU memory") if on_device else (free_memory(), "RAM")
    needed = max(_head(subject), max(_block(subject, block, score) for block in subject.blocks))
    needed += 0 if on_device else LATER + _states(subject, score, draws)
    if needed > free:
        count = max(len(schemes) for schemes in subject.schemes.values())
        raise ResourceError(
            f"Measuring needs {format_size(needed)} of {what}, {format_size(free)} are free. Give fewer "
            f"--schemes (they are {count}), a shorter --sequence-length (it is {subject.tokens.shape[1]}), "
            f"or free {format_size(needed - free)}."
        )


def _head(subject: Subject) -> int:
    """Everything outside the blocks in float32, and the logits of a sample or a micro-batch."""
    sizes: list[int] = [
        subject.model.get_parameter(name).numel() for name in outside(subject.model, subject.blocks)
    ]
    vocabulary = subject.model.get_input_embeddings().num_embeddings
    tokens = max(subject.tokens.shape[1], BATCH_TOKENS)
    return 4 * sum(sizes) + 2 * max(sizes) + LOGITS * 4 * tokens * int(vocabulary)


def _block(subject: Subject, block: Block, score: Score) -> int:
    """A block in float32 and for products, its rounding errors, and one sample on its way there and back."""
    weights = sum(parameter.numel() for parameter in block.module.parameters())
    itemsize = product_dtype(subject.device).itemsize
    if score == "kl":
        return (4 + 4 + itemsize) * weights
    shapes = [(shape, unit) for unit in subject.inside(block) for shape in unit.layers.values()]
    tokens, errors, moved, kept = subject.tokens.shape[1], 0, 0, 0
    for (n, k), unit in shapes:
        count = len(subject.schemes[unit.name])
        errors += count * itemsize * n * k
        moved += count * 4 * tokens * n
        kept += GRAPH * 4 * tokens * (n + k)
    return (4 + itemsize) * weights + errors + moved + kept


def _states(subject: Subject, score: Score, draws: int) -> int:
    """Hidden states in RAM; what exceeds their share of it lies on the disk."""
    samples, length = subject.tokens.shape
    each = 4 * length * int(subject.model.get_input_embeddings().embedding_dim)
    copies = subject.scored * (len(subject.trials) if score == "kl" else 1)
    gradients = draws * subject.scored if score == "gradient" else 0
    states = min((samples * (len(subject.blocks) + 1) + copies) * each, subject.limits.states)
    return gradients * each + states
