"""What a run needs against what the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

from qdeploy.errors import ResourceError
from qdeploy.estimate import Estimate
from qdeploy.memory import format_size, free_device, free_disk, free_memory


def refuse_what_cannot_fit(needed: Estimate, output: Path) -> None:
    """Refuse a run that the machine cannot hold.

    Raises:
        ResourceError: what is short, by how much, and the smallest change.
    """
    problems = list(problems_with(needed, output))
    if problems:
        raise ResourceError(" ".join(problems) + " --force tries it all the same.")


def less_memory(needed: Estimate) -> str:
    """The smallest change to a run that the machine could not hold after all."""
    free = "Close other programs, raise limits such as ulimit -v, or use a larger machine."
    wanted = max(needed.least_budget, _activations(needed) // 2)
    if wanted >= _activations(needed):
        return free
    took = format_size(_activations(needed))
    return f"Give {_option(needed)} {_mib(wanted)} (activations were to take {took}). Or: {free}"


def problems_with(needed: Estimate, output: Path) -> Iterator[str]:
    """What does not fit into the memory and the disk as they are now, each with the smallest change."""
    option = _option(needed)
    room = needed.limits.inside(needed.states)
    if needed.running > room:
        yield (
            f"One micro-batch takes {format_size(needed.running)} inside a block, activations may take "
            f"{format_size(room)}. Give {option} {_mib(needed.least_budget)}, or shorter sequences."
        )
        return
    more = needed.memory - psutil.Process().memory_info().rss
    yield from _short("RAM", more, free_memory(), needed, None if needed.on_device else option)
    device = free_device()
    if device is not None:
        yield from _short("GPU memory", needed.device, device, needed, option)
    yield from _disk_problem(needed, output)


def _short(what: str, more: int, free: int, needed: Estimate, option: str | None) -> Iterator[str]:
    if more <= free:
        return
    # What the run takes beside the activations stays; they can be given less.
    activations = _activations(needed)
    possible = free - (more - activations)
    if option and needed.least_budget <= possible < activations:
        remedy = f"Give {option} {_mib(possible, down=True)}."
    else:
        remedy = f"Free {format_size(more - free)}, or use a larger machine."
    yield f"The run needs {format_size(more)} of {what}, {format_size(free)} are free. {remedy}"


def _option(needed: Estimate) -> str:
    return "--device-memory" if needed.on_device else "--activation-memory"


def _activations(needed: Estimate) -> int:
    """Bytes of them where the model is."""
    return needed.running + needed.halted + (0 if needed.on_device else needed.states)


def _disk_problem(needed: Estimate, output: Path) -> Iterator[str]:
    partial = output.with_name(output.name + ".partial")
    there = sum(path.stat().st_size for path in partial.rglob("*.safetensors"))
    more, free = needed.disk - there, free_disk(output.resolve().parent)
    if more > free:
        spill = f", {format_size(needed.spilled)} of it for a while," if needed.spilled else ""
        yield (
            f"The run needs {format_size(more)} on the disk of {output}{spill} and "
            f"{format_size(free)} are free. Make room for {format_size(more - free)}, or choose another disk "
            "with -o."
        )


def _mib(size: int, *, down: bool = False) -> str:
    """A size as an option takes it."""
    return f"{size >> 20 if down else -(-size >> 20)}MiB"
