"""The samples that the 16-bit model runs too, beside the quantized one."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.modeling.activations import states_bytes

EVERY = 2
"""Of so many samples one is followed, where some are enough. KL of SmolLM2-135M on 4 texts (4 bits, 32 × 512
tokens): 0.0679 0.1880 0.1472 0.0857 with all, 0.0705 0.1881 0.1507 0.0817 with half of them."""


@dataclass(frozen=True, slots=True)
class Followed:
    """One in `every` samples of all processes, seen from one whose first sample is number `offset` of all."""

    offset: int
    every: int = EVERY

    def count(self, samples: int) -> int:
        """How many of this process's first `samples` samples are followed."""
        return len(range(-self.offset % self.every, samples, self.every))

    def place(self, batch: slice) -> slice:
        """Where a micro-batch's followed samples are among all followed ones of this process."""
        return slice(self.count(batch.start), self.count(batch.stop))

    def chosen(self, batch: slice) -> slice:
        """Which of a micro-batch's samples are followed."""
        return slice(-(self.offset + batch.start) % self.every, None, self.every)


def states_together(shape: tuple[int, int, int], every: int | None) -> int:
    """Bytes of all hidden states of one process over samples [S, T, D].

    With a reference, for one in `every` samples, those of the 16-bit model come on top, between the layers of
    a block and after it.
    """
    if every is None:
        return states_bytes(shape)
    followed = (Followed(0, every).count(shape[0]), *shape[1:])
    return states_bytes(shape) + 2 * states_bytes(followed)
