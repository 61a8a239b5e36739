"""Processes that a signal hits at a chosen moment.

They are forked from a server that has imported the libraries and started no thread, so that one costs
milliseconds where a fresh interpreter takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "qdeploy.cli.main",
        "qdeploy.cli.quantize",
        "tests.warm",
        "qdeploy.pipeline",
        "rich.table",
        "transformers.models.auto.modeling_auto",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.llama.modeling_llama",
    ]
)
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "fcntl.flock"}
"""Audit events of what changes a folder; opening a file to write it counts too."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended.

    Attributes:
        code: exit code; minus the signal's number if one ended it.
        changes: changes to the file system that it made or was about to make.
        seconds: how long it ran.
    """

    code: int
    changes: int
    seconds: float


def run(
    work: Callable[..., None],
    *arguments: Any,
    at_change: int | None = None,
    after: float | None = None,
    number: signal.Signals = signal.SIGKILL,
) -> Ended:
    """Call `work` in a process of its own and send it a signal.

    Args:
        work: a function of a module.
        at_change: just before this change to the file system, counted from 1.
        after: after so many seconds; without either the process runs to its end.
        number: the signal.
    """
    changes = CONTEXT.Value("i", 0)
    process = CONTEXT.Process(target=_call, args=(work, arguments, changes, at_change, number))
    start = time.monotonic()
    process.start()
    process.join(after)
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, changes.value, time.monotonic() - start)


def _call(
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    changes: Any,
    at_change: int | None,
    number: signal.Signals,
) -> None:
    def watch(event: str, details: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and _writes(details)):
            changes.value += 1
            if changes.value == at_change:
                os.kill(os.getpid(), number)

    sys.addaudithook(watch)
    work(*arguments)


def _writes(details: tuple[Any, ...]) -> bool:
    return bool(details[2] & (os.O_WRONLY | os.O_RDWR))
