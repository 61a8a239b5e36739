"""The event loop under everything that measures: uvloop's where it is installed, else asyncio's own."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

NAME = new_event_loop.__module__.partition(".")[0]
"""Which one it is, for the record."""


def run(main: Coroutine[Any, Any, T]) -> T:
    """As asyncio.run, on that loop, and with as many sockets as the system allows: each stream needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
