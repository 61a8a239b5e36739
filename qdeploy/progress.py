"""Progress for people: a bar with an ETA on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True)
"""Where messages for people go; standard output is for results."""

LOG_INTERVAL_S = 15.0


def warn(message: str) -> None:
    """Tell people, on a line of its own, what they may want to change."""
    console.print(f"[yellow]Warning:[/] {escape(message)}", highlight=False, soft_wrap=True)


class Task:
    """One bar. `advance` moves it; `note` says what is being worked on."""

    def __init__(self, title: str, total: int, bar: Progress | None) -> None:
        self._title, self._total, self._bar = title, total, bar
        self._done, self._note = 0, ""
        self._start = self._last = time.monotonic()
        self._id = bar.add_task(title, total=total, note="") if bar else None

    def note(self, text: str) -> None:
        self._note = text
        if self._bar and self._id is not None:
            self._bar.update(self._id, note=text)

    def advance(self, steps: int = 1) -> None:
        self._done += steps
        if self._bar and self._id is not None:
            self._bar.advance(self._id, steps)
        elif self._done >= self._total or time.monotonic() - self._last > LOG_INTERVAL_S:
            self._log()

    def _log(self) -> None:
        self._last = time.monotonic()
        elapsed = self._last - self._start
        remaining = elapsed / max(self._done, 1) * (self._total - self._done)
        console.print(
            f"{self._title}: {self._done}/{self._total} {self._note} "
            f"({elapsed:.0f} s, about {remaining:.0f} s left)",
            highlight=False,
        )


class _Bars(Progress):
    """Bars with their notes below: beside a bar, a long note would push out the time that is left."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if note := task.fields["note"]:
                yield Text(f"  {note}", overflow="ellipsis", no_wrap=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Task]:
    """A task of `total` steps shown while the block runs."""
    if not console.is_terminal:
        yield Task(title, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with _Bars(*columns, console=console) as bar:
        yield Task(title, total, bar)
