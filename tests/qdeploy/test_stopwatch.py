"""Where the time of a run goes."""

from __future__ import annotations

from functools import partial

import pytest

from qdeploy import stopwatch
from qdeploy.halting import Halting, halting
from qdeploy.stopwatch import measuring, part


class Clock:
    """A clock that moves when told to."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stopwatch, "time", clock)
    return clock


def test_a_part_does_not_count_what_another_inside_it_takes(clock: Clock) -> None:
    with measuring() as seconds:
        clock.spend(1)
        with part("forward"):
            clock.spend(10)
            with part("hessian"):
                clock.spend(100)
            clock.spend(20)
        clock.spend(2)
        with part("forward"):
            clock.spend(40)
    assert seconds == {"forward": 70, "hessian": 100}


def test_computations_that_halt_are_counted_where_they_run(clock: Clock) -> None:
    def work() -> None:
        clock.spend(1)
        with part("hessian"):
            clock.spend(10)
        Halting.halt()
        clock.spend(100)

    with measuring() as seconds, halting([partial(work), partial(work)]) as forwards:
        for _ in range(2):
            with part("forward"):
                for forward in forwards:
                    forward.advance()
            with part("solve"):
                clock.spend(1000)
    assert seconds == {"forward": 202, "hessian": 20, "solve": 2000}


def test_an_error_closes_its_part(clock: Clock) -> None:
    with measuring() as seconds:
        with pytest.raises(ZeroDivisionError), part("solve"), part("pack"):
            raise ZeroDivisionError
        clock.spend(1)
        with part("write"):
            clock.spend(10)
    assert seconds == {"solve": 0, "pack": 0, "write": 10}


def test_without_measuring_nothing_is_kept(clock: Clock) -> None:
    with part("load"):
        clock.spend(1)
    with measuring() as seconds:
        pass
    assert seconds == {}
