"""Drawing: a thin layer over ElementTree, so that everything is escaped and well-formed by construction.

Panels are 360 units wide, the width of a phone, and text is 11 to 12 units: at any size the page shows them,
the type stays legible. Colours are classes that the page's style sheet defines, for light, dark and print.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

WIDTH = 360
Scale = Callable[[float], float]


class Drawing:
    """An SVG picture with a title, unique on its page, and a description for those who do not see it."""

    def __init__(self, height: float, title: str, description: str) -> None:
        slug = re.sub(r"\W+", "-", title.lower())
        names = [f"title-{slug}", f"about-{slug}"]
        self._root = ElementTree.Element(
            "svg",
            {"viewBox": f"0 0 {WIDTH} {_text(height)}", "role": "img", "aria-labelledby": " ".join(names)},
        )
        self._add("title", title, id=names[0])
        self._add("desc", description, id=names[1])

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self._add("line", x1=x1, y1=y1, x2=x2, y2=y2, style=style)

    def rect(self, x: float, y: float, width: float, height: float, style: str, opacity: float = 1.0) -> None:
        self._add("rect", x=x, y=y, width=width, height=height, style=style, fill_opacity=opacity)

    def circle(self, x: float, y: float, radius: float, style: str) -> None:
        self._add("circle", cx=x, cy=y, r=radius, style=style)

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        self._add("text", text, x=x, y=y, style=style, text_anchor=anchor)

    def tooltip(self, text: str) -> None:
        """A title for the shape drawn last, shown when pointed at."""
        ElementTree.SubElement(self._root[-1], "title").text = text

    def markup(self) -> str:
        return ElementTree.tostring(self._root, encoding="unicode")

    def _add(self, tag: str, content: str | None = None, **attributes: float | str) -> None:
        names = {"style": "class"}
        cleaned = {
            names.get(k, k.replace("_", "-")): v if isinstance(v, str) else _text(v)
            for k, v in attributes.items()
            if v != ""
        }
        ElementTree.SubElement(self._root, tag, cleaned).text = content


def linear(low: float, high: float, start: float, stop: float) -> Scale:
    """Map [low, high] to [start, stop]; a range of no extent maps to `start`."""
    span = high - low
    return lambda value: start + (value - low) / span * (stop - start) if span else start


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` round values covering [low, high]; the ends lie at or inside the range."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def nice_top(values: Sequence[float]) -> float:
    """A round number at or above the largest value; 1 where there is nothing to show."""
    top = max(values, default=0.0)
    if top <= 0:
        return 1.0
    step = ticks(0, top)
    return math.ceil(top / step[1] - 1e-9) * step[1] if len(step) > 1 else top


def axis(drawing: Drawing, scale: Scale, marks: Sequence[float], top: float, bottom: float) -> None:
    """Vertical grid lines at `marks`, labelled below `bottom`."""
    for mark in marks:
        drawing.line(scale(mark), top, scale(mark), bottom, "grid")
        drawing.text(scale(mark), bottom + 14, tick_label(mark), "tick", "middle")


def tick_label(value: float) -> str:
    return f"{value:,.6g}".replace("-", "−")


def _text(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
