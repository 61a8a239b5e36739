"""Computations that halt in the middle."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch

from qdeploy.halting import Halting, halting


def test_computations_take_turns_at_every_halt() -> None:
    events: list[str] = []

    def work(name: str) -> None:
        for step in range(2):
            events.append(f"{name}{step}")
            Halting.halt()
        events.append(f"{name} end")

    with halting([partial(work, "a"), partial(work, "b")]) as threads:
        for _ in range(3):
            events.append("|")
            for thread in threads:
                thread.advance()
    assert events == ["|", "a0", "b0", "|", "a1", "b1", "|", "a end", "b end"]


def test_an_error_comes_out_where_the_work_was_advanced() -> None:
    def work() -> None:
        Halting.halt()
        raise ZeroDivisionError

    with halting([work]) as [thread]:
        thread.advance()
        with pytest.raises(ZeroDivisionError):
            thread.advance()


def test_leaving_ends_what_has_halted() -> None:
    reached: list[str] = []
    before = threading.active_count()

    def work() -> None:
        try:
            Halting.halt()
            reached.append("after the halt")
        finally:
            reached.append("unwound")

    with pytest.raises(KeyboardInterrupt), halting([work, work]) as threads:
        threads[0].advance()
        raise KeyboardInterrupt
    assert reached == ["unwound"]
    assert threading.active_count() == before


def test_no_gradients_are_kept() -> None:
    modes: list[bool] = []
    with halting([lambda: modes.append(torch.is_grad_enabled())]) as [thread]:
        thread.advance()
    assert modes == [False]
