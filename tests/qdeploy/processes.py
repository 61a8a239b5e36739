"""Real processes that find each other as under torchrun, but with nobody to end them all on an error."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch.distributed import TCPStore

PATIENCE_S = 120.0
"""Far beyond what any of these runs takes, and far below the group's own timeout."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal, and what it printed."""

    code: int | None
    stdout: str
    stderr: str


def torchrun_environment(rank: int, world: int, port: int) -> dict[str, str]:
    """What torchrun sets for a process on a single machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    store = {"MASTER_PORT": port, "TORCHELASTIC_RESTART_COUNT": 0, "TORCHELASTIC_USE_AGENT_STORE": True}
    return {name: str(value) for name, value in (numbers | store).items()} | {"MASTER_ADDR": "127.0.0.1"}


def together(world: int, folder: Path, work: Callable[[int], None]) -> list[Ended]:
    """Run `work(rank)` in `world` processes; `folder` takes what they print.

    `work` is pickled. The processes come from a server that has imported the slow libraries once.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qdeploy.pipeline", "transformers.models.llama.modeling_llama"])
    folder.mkdir()
    # torchrun, too, keeps the store outside of the processes.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    started: list[BaseProcess] = []
    for rank in range(world):
        process = context.Process(target=_begin, args=(rank, world, store.port, folder, work))
        process.start()
        started.append(process)
    return [_end(process, folder / str(rank)) for rank, process in enumerate(started)]


def _begin(rank: int, world: int, port: int, folder: Path, work: Callable[[int], None]) -> None:
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        file = os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, stream.fileno())
    os.environ.update(torchrun_environment(rank, world, port))
    torch.set_num_threads(1)
    work(rank)


def _end(process: BaseProcess, printed: Path) -> Ended:
    process.join(PATIENCE_S)
    hangs = process.is_alive()
    process.kill()
    process.join()
    assert not hangs, "the process never ended"
    return Ended(process.exitcode, *(printed.with_suffix(f".{name}").read_text() for name in ("out", "err")))
