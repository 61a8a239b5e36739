"""Several processes that share one run, started by torchrun.

    torchrun --nproc-per-node N -m qdeploy quantize …

Every process walks over all blocks with its part of the calibration samples and the whole of the weights.
For each group of layers that read the same input the Hessians are added up; each process then solves its
part of every layer's rows, which are independent of each other given H, and the rows are put together again.
So any number of processes is kept busy by any model. H is factorized by every process alike: the others would
have to wait for it anyway. The first process alone writes and speaks.

Recipe, samples and order are those of one process. What differs is the rounding of float32: sums over tokens
are taken in another order, matrix products of other shapes. A weight close to the middle between two codes
may then fall to the other side, and GPTQ hands that on to the columns that follow. The same number of
processes with the same number of threads gives the same bytes again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from qdeploy.errors import DistributedError, Interrupted, QDeployError, UsageError
from qdeploy.progress import console

TIMEOUT = timedelta(minutes=30)
"""Longest wait for another process; hashing or fetching a large model takes minutes."""

CPU = torch.device("cpu")

T = TypeVar("T")


class Group:
    """The processes of one run. This one is a group of one, in which nothing has to be said.

    All methods that hand something over are called by every process of the group in the same order.

    Attributes:
        rank: this process's number, 0 … world − 1.
        world: how many processes there are.
    """

    rank, world = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def part(self, count: int) -> slice:
        """This process's part of `count` things; parts are adjacent and differ in size by at most one."""
        return slice(*self._bounds(count)[self.rank : self.rank + 2])

    def share(self, value: T | None) -> T:
        """The first process's value, in every process; the others' are ignored."""
        assert value is not None
        return value

    def add(self, tensor: Tensor) -> None:
        """Put the sum over all processes in the place of `tensor`, which is contiguous."""

    def greatest(self, tensor: Tensor) -> None:
        """Put the largest entries over all processes in the place of `tensor`, which is contiguous."""

    def totals(self, *values: float) -> tuple[float, ...]:
        """The sums of the values over all processes."""
        return values

    def join(self, part: Tensor, count: int) -> Tensor:
        """The whole [count, …] of which every process holds its `part`, in every process."""
        return part

    def _bounds(self, count: int) -> list[int]:
        return [count * rank // self.world for rank in range(self.world + 1)]


ALONE = Group()


class Processes(Group):
    """A group of several: NCCL between GPUs, gloo between CPUs and for what lies in main memory.

    Raises (from every method that hands something over):
        DistributedError: another process ended or did not answer for TIMEOUT.
    """

    def __init__(self, rank: int, world: int, device: torch.device) -> None:
        self.rank, self.world, self._device = rank, world, device

    @property
    def device(self) -> torch.device:
        """The GPU with the process's number on this machine, or the CPU."""
        return self._device

    def share(self, value: T | None) -> T:
        """As in `Group`; any value that can be pickled."""
        found: list[T | None] = [value if self.leads else None]
        self._talk(lambda: dist.broadcast_object_list(found, src=0, device=CPU))
        assert found[0] is not None
        return found[0]

    def add(self, tensor: Tensor) -> None:
        """As in `Group`; every process ends with the same bits."""
        self._talk(lambda: dist.all_reduce(tensor))

    def greatest(self, tensor: Tensor) -> None:
        """As in `Group`."""
        self._talk(lambda: dist.all_reduce(tensor, dist.ReduceOp.MAX))

    def totals(self, *values: float) -> tuple[float, ...]:
        """As in `Group`."""
        sums = torch.tensor(values, dtype=torch.float64)
        self.add(sums)
        return tuple(sums.tolist())

    def join(self, part: Tensor, count: int) -> Tensor:
        """As in `Group`."""
        bounds = self._bounds(count)
        sizes = [end - start for start, end in pairwise(bounds)]
        # Both backends want pieces of one size.
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        pieces = [torch.empty_like(padded) for _ in sizes]
        self._talk(lambda: dist.all_gather(pieces, padded))
        return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])

    def _talk(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            raise DistributedError(
                f"Process {self.rank} of {self.world} lost another one: it ended, or did not answer for "
                f"{TIMEOUT.seconds // 60} minutes. Finished blocks are kept; mend what ended it, and the "
                "same command goes on from there."
            ) from error


@contextmanager
def processes() -> Iterator[Group]:
    """The group that torchrun started this process in; ALONE without torchrun or with one process.

    An error in one process ends them all: the others lose their connection to it. Only the first one to fail
    raises it; the others leave with the exit code of theirs and no word, as do all but the first on Ctrl-C.

    Raises:
        DistributedError: the processes did not find each other.
        UsageError: more processes on this machine than it has GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield ALONE
        return
    rank, device = int(os.environ["RANK"]), _own_device()
    console.quiet = rank > 0
    store = _meet(rank, world, device)
    try:
        yield Processes(rank, world, device)
    except KeyboardInterrupt:
        if rank > 0:
            raise SystemExit(Interrupted.exit_code) from None
        raise
    except QDeployError as error:
        if not _first_to_fail(store):
            raise SystemExit(error.exit_code) from error
        raise
    dist.destroy_process_group()


def refuse_idle(group: Group, samples: int) -> None:
    """Raise UsageError if there are fewer calibration samples than processes."""
    if samples < group.world:
        raise UsageError(
            f"{group.world} processes cannot share {samples} calibration samples. "
            f"Use --nproc-per-node {samples} or --samples {group.world}."
        )


def _own_device() -> torch.device:
    if not torch.cuda.is_available():
        return CPU
    local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if local >= found:
        raise UsageError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes on a machine with {found} GPUs. "
            f"Use --nproc-per-node {found}."
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _meet(rank: int, world: int, device: torch.device) -> Store:
    """Open the connections; the store they were arranged through lives until the processes end."""
    backend = "gloo" if device == CPU else "cpu:gloo,cuda:nccl"
    try:
        store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"Process {rank} of {world} did not find the others ({str(error).splitlines()[0]}). Start them "
            "all with torchrun, and on several machines give each the same --rdzv-endpoint."
        ) from error
    return PrefixStore("qdeploy", store)


def _first_to_fail(store: Store) -> bool:
    try:
        return int(store.add("failed", 1)) == 1
    except RuntimeError:  # the store went down with the process that kept it
        return True
