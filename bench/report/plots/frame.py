"""A plot of all variants together: two axes, and a legend whose entries are read with what they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from qdeploy.bench.records import Estimate
from qdeploy.bench.report.scales import Axis
from qdeploy.bench.report.svg import LINE, WIDTH, Drawing, axis, hue, shortened, side_axis

LEFT, RIGHT, TOP, HEIGHT, ROW = 46, 12, 32, 190, 17
BOTTOM = TOP + HEIGHT
LEGEND = BOTTOM + 52
KEY = 30
"""Width of the sample of a variant's line in the legend."""

LINES = 3
NAME = 34
"""Most characters of a name in the legend."""


class Frame:
    """`up` drawn over `across`; `entries` variants are entered, each read in at most LINES lines."""

    def __init__(self, title: str, up: str, across: str, y: Axis, x: Axis, entries: int, hint: str) -> None:
        self._reading = LEGEND + ROW * entries + 6
        self._entered = 0
        about = f"{up} over {across} of {entries} variants."
        self.drawing = Drawing(self._reading + LINE * (LINES - 1) + 6, title, about)
        self.drawing.text(0, 14, up, "heading")
        self.drawing.text((LEFT + WIDTH - RIGHT) / 2, BOTTOM + 30, across, "axis", "middle")
        self.x, self.y = x.scale(LEFT, WIDTH - RIGHT), y.scale(BOTTOM, TOP)
        axis(self.drawing, self.x, x.marks, TOP, BOTTOM)
        side_axis(self.drawing, self.y, y.marks, LEFT, WIDTH - RIGHT)
        self.drawing.hint(0, self._reading, hint)

    @contextmanager
    def entry(self, index: int, name: str, note: str, lines: Sequence[str]) -> Iterator[None]:
        """A variant's line in the legend; what is drawn inside is highlighted with it and reads `lines`."""
        y = LEGEND + ROW * self._entered
        self._entered += 1
        with self.drawing.reading(name, lines, 0, self._reading):
            self.drawing.rect(0, y - 12, WIDTH, ROW, "hit")
            self.drawing.path([(0, y - 4), (KEY, y - 4)], f"curve {hue(index)}")
            self.drawing.marker(index, KEY / 2, y - 4)
            self.drawing.text(KEY + 8, y, shortened(name, NAME))
            self.drawing.text(WIDTH, y, note, "tick", "end")
            yield

    def curve(self, index: int, points: Iterable[tuple[float, float]]) -> None:
        """A line through the points, with a wider one unseen around it to be pointed at."""
        placed = [(self.x(x), self.y(y)) for x, y in points]
        self.drawing.path(placed, "hit")
        self.drawing.path(placed, f"curve {hue(index)}")

    def mark(self, index: int, x: Estimate, y: Estimate, tip: str, style: str = "") -> None:
        """A point with its intervals; `tip` is shown when it is pointed at."""
        across, up = self.x(x.value), self.y(y.value)
        if x.low is not None and x.high is not None:
            self.drawing.line(self.x(x.low), up, self.x(x.high), up, f"whisker {hue(index)}")
        if y.low is not None and y.high is not None:
            self.drawing.line(across, self.y(y.low), across, self.y(y.high), f"whisker {hue(index)}")
        self.drawing.marker(index, across, up, style)
        self.drawing.tooltip(tip)

    def markup(self) -> str:
        return self.drawing.markup()
