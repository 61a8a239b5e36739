"""Computations that halt in the middle and go on later.

True-sequential quantization needs what enters a layer, then changes the layer, then needs what leaves it. A
forward that halts at the layer is run once, where others run it again from the start for every layer. Each
has a stack of its own (a greenlet); all run in one thread, so that they share its pool of OpenMP threads and
its heap: with a thread each, pools that wait for work and heaps that keep freed tensors took a third more
time and twice the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from greenlet import getcurrent, greenlet


class Halting:
    """Runs `work` up to its next `halt`, one `advance` at a time. No gradients are kept."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._stack = greenlet(torch.no_grad()(work))

    def advance(self) -> None:
        """Go on until `work` halts or returns. Raises what it raises."""
        self._stack.switch()

    def cancel(self) -> None:
        """End `work` where it halted: raises GreenletExit there, which no `except Exception` catches."""
        self._stack.throw()

    @staticmethod
    def halt() -> None:
        """Called inside `work`: give control back until the next `advance`."""
        caller = getcurrent().parent
        assert caller is not None, "halt() outside of a Halting"
        caller.switch()


@contextmanager
def halting(works: Sequence[Callable[[], None]]) -> Iterator[list[Halting]]:
    """Computations ready for their first `advance`; those not finished at the end are cancelled."""
    computations = [Halting(work) for work in works]
    try:
        yield computations
    finally:
        for computation in computations:
            computation.cancel()
