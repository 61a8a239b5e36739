"""Computations that halt in the middle and go on later.

True-sequential quantization needs what enters a layer, then changes the layer, then needs what leaves it. A
forward that halts at the layer is run once, where others run it again from the start for every layer. Python
can halt a call only by giving it a thread; the threads take turns, so that nothing runs at the same time.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch


class _Cancelled(BaseException):
    """Unwinds a halted computation that is not needed any more; no `except Exception` may catch it."""


class Halting(threading.Thread):
    """Runs `work` up to its next `halt`, one `advance` at a time. No gradients are kept."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._go, self._halted = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None
        self._cancelled = False

    def run(self) -> None:
        """The thread's life; called by `start`."""
        try:
            self._wait()
            with torch.no_grad():  # the mode belongs to the thread, not to the process
                self._work()
        except _Cancelled:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._halted.release()

    def advance(self) -> None:
        """Go on until `work` halts or returns. Raises what it raises."""
        self._go.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """End `work` where it halted."""
        self._cancelled = True
        self._go.release()
        self.join()

    def _wait(self) -> None:
        self._go.acquire()
        if self._cancelled:
            raise _Cancelled

    @staticmethod
    def halt() -> None:
        """Called inside `work`: give control back until the next `advance`."""
        thread = threading.current_thread()
        assert isinstance(thread, Halting)
        thread._halted.release()
        thread._wait()


@contextmanager
def halting(works: Sequence[Callable[[], None]]) -> Iterator[list[Halting]]:
    """Computations ready for their first `advance`; those not finished at the end are cancelled."""
    threads = [Halting(work) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.cancel()
        _trim()


def _trim() -> None:
    """Give freed memory back to the system.

    glibc keeps an arena for every thread, and what ended threads have freed adds up from block to block.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    if trim is not None:
        trim(0)
