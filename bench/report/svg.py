"""Drawing: a thin layer over ElementTree, so that everything is escaped and well-formed by construction.

Panels are 360 units wide, the width of a phone, and text is 11 to 12 units: at any size the page shows them,
the type stays legible. Colours are classes that the page's style sheet defines, for light, dark and print.
A variant has a hue, a shape and a dash, so that colour is never all that tells it from another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from xml.etree import ElementTree

from qdeploy.bench.report.scales import Scale, tick_label

WIDTH = 360
LINE = 14
"""From one line of text to the next."""

READ = 58
"""Most characters of a line of text across the whole drawing."""

HUES = 6
CORNERS: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    ((0, -1.15), (1.1, 0.85), (-1.1, 0.85)),
    ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    ((0, 1.15), (1.1, -0.85), (-1.1, -0.85)),
    ((-1.2, -0.5), (1.2, -0.5), (1.2, 0.5), (-1.2, 0.5)),
)
"""The shapes of variants, in radii from the middle: none is the circle."""


class Drawing:
    """An SVG picture with a title, unique on its page, and a description for those who do not see it."""

    def __init__(self, height: float, title: str, description: str) -> None:
        slug = re.sub(r"\W+", "-", title.lower())
        names = [f"title-{slug}", f"about-{slug}"]
        self._root = ElementTree.Element(
            "svg",
            {"viewBox": f"0 0 {WIDTH} {_text(height)}", "role": "img", "aria-labelledby": " ".join(names)},
        )
        self._into = self._root
        self._add("title", title, id=names[0])
        self._add("desc", description, id=names[1])

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str) -> None:
        self._add("line", x1=x1, y1=y1, x2=x2, y2=y2, style=style)

    def rect(self, x: float, y: float, width: float, height: float, style: str, opacity: float = 1.0) -> None:
        self._add("rect", x=x, y=y, width=width, height=height, style=style, fill_opacity=opacity)

    def circle(self, x: float, y: float, radius: float, style: str) -> None:
        self._add("circle", cx=x, cy=y, r=radius, style=style)

    def path(self, points: Iterable[tuple[float, float]], style: str, closed: bool = False) -> None:
        """Straight lines from point to point."""
        if commands := _commands(points):
            self._add("path", d=commands + ("Z" if closed else ""), style=style)

    def marker(self, index: int, x: float, y: float, style: str = "", radius: float = 4.0) -> None:
        """The shape of the variant `index`, in its hue."""
        corners = CORNERS[(index + index // HUES) % len(CORNERS)]
        style = f"dot {hue(index)} {style}".rstrip()
        if not corners:
            self.circle(x, y, radius, style)
            return
        self.path([(x + radius * dx, y + radius * dy) for dx, dy in corners], style, closed=True)

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        self._add("text", text, x=x, y=y, style=style, text_anchor=anchor)

    def tooltip(self, text: str) -> None:
        """A title for the shape drawn last, shown when pointed at."""
        ElementTree.SubElement(self._into[-1], "title").text = text

    @contextmanager
    def reading(self, name: str, lines: Sequence[str], x: float, y: float) -> Iterator[None]:
        """What is drawn inside, `name`, can be pointed at and reached by Tab; then `lines` stand at (x, y).

        The place is for all readings of the drawing, so keep it free; `hint` fills it until then.
        """
        self._root.set("role", "group")
        attributes = {
            "class": "reading",
            "tabindex": "0",
            "role": "img",
            "aria-label": ", ".join([name, *lines]),
        }
        self._into = ElementTree.SubElement(self._root, "g", attributes)
        yield
        for number, line in enumerate(lines):
            self.text(x, y + LINE * number, shortened(line, READ), "readout")
        self._into = self._root

    def hint(self, x: float, y: float, text: str) -> None:
        """What stands in the place of the readings while none is shown."""
        self.text(x, y, text, "tick hint")

    def markup(self) -> str:
        return ElementTree.tostring(self._root, encoding="unicode")

    def _add(self, tag: str, content: str | None = None, **attributes: float | str) -> None:
        names = {"style": "class"}
        cleaned = {
            names.get(k, k.replace("_", "-")): v if isinstance(v, str) else _text(v)
            for k, v in attributes.items()
            if v != ""
        }
        ElementTree.SubElement(self._into, tag, cleaned).text = content


def hue(index: int) -> str:
    """The class of the variant `index`: its colour and the dash of its lines."""
    return f"v{index % HUES}"


def shortened(name: str, most: int) -> str:
    """`name` in at most `most` characters, its middle left out if need be: SVG does not wrap."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[head + 1 - most :]}"


def axis(drawing: Drawing, scale: Scale, marks: Sequence[float], top: float, bottom: float) -> None:
    """Vertical grid lines at `marks`, labelled below `bottom`."""
    for mark in marks:
        drawing.line(scale(mark), top, scale(mark), bottom, "grid")
        drawing.text(scale(mark), bottom + LINE, tick_label(mark), "tick", "middle")


def side_axis(drawing: Drawing, scale: Scale, marks: Sequence[float], left: float, right: float) -> None:
    """Horizontal grid lines at `marks`, labelled left of `left`."""
    for mark in marks:
        drawing.line(left, scale(mark), right, scale(mark), "grid")
        drawing.text(left - 6, scale(mark) + 4, tick_label(mark), "tick", "end")


def _commands(points: Iterable[tuple[float, float]]) -> str:
    """The path through the points, to a tenth of a unit; level and upright steps in short, for stairs."""
    rounded = [(f"{x:.1f}".removesuffix(".0"), f"{y:.1f}".removesuffix(".0")) for x, y in points]
    commands = [f"M{x} {y}" for x, y in rounded[:1]]
    for (x1, y1), (x, y) in pairwise(rounded):
        commands.append(f"V{y}" if x == x1 else f"H{x}" if y == y1 else f"L{x} {y}")
    return "".join(commands)


def _text(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
