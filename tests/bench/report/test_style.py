"""The style sheet's colours by what can be computed of them: contrast, and hues for every colour vision."""

from __future__ import annotations

import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

Colour = NDArray[np.float64]
THEMES = {"light": 0, "dark": 1}
TEXT = [
    *((ink, back) for ink in ("ink", "soft", "open") for back in ("page", "card")),
    *((f"{verdict}", f"{verdict}-back") for verdict in ("pass", "fail", "open")),
    ("page", "ink"),
    ("ink", "mark-back"),
]
GRAPHICS = [*(f"v{i}" for i in range(6)), "focus", "heat", "fail", "soft"]

# Machado, Oliveira & Fernandes 2009, IEEE TVCG 15, 1291-1298: complete dichromacy, on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
    "grey": [[0.2126, 0.7152, 0.0722]] * 3,
}
# OKLab (Ottosson 2020): linear RGB to cone responses, and their cube roots to lightness and two hue axes.
CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
LAB = [
    [0.2104542553, 0.793617785, -0.0040720468],
    [1.9779984951, -2.428592205, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.808675766],
]


def colours(theme: str) -> dict[str, Colour]:
    """The colours of a theme, linear RGB."""
    sheet = resources.files("qdeploy.bench.report").joinpath("templates/style.css").read_text()
    found = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", sheet)
    return {name: linear(pair[THEMES[theme]]) for name, *pair in found}


def linear(code: str) -> Colour:
    """sRGB as in WCAG 2.2, undone."""
    encoded = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def contrast(one: Colour, other: Colour) -> float:
    """WCAG 2.2, contrast ratio."""
    dark, light = sorted(float(c @ VISION["grey"][0]) + 0.05 for c in (one, other))
    return light / dark


def lab(colour: Colour, vision: str) -> Colour:
    seen = np.clip(np.array(VISION[vision]) @ colour, 0, 1)
    return np.array(LAB) @ np.cbrt(np.array(CONES) @ seen)


def test_the_contrast_of_black_on_white() -> None:
    assert contrast(linear("#000000"), linear("#ffffff")) == pytest.approx(21)
    assert contrast(linear("#777777"), linear("#ffffff")) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("ink", "back"), TEXT)
def test_text_is_legible(theme: str, ink: str, back: str) -> None:
    found = colours(theme)
    assert contrast(found[ink], found[back]) >= 4.5


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("mark", GRAPHICS)
def test_marks_stand_out(theme: str, mark: str) -> None:
    found = colours(theme)
    assert min(contrast(found[mark], found[back]) for back in ("page", "card")) >= 3


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("vision", ["usual", "protanopia", "deuteranopia", "tritanopia"])
def test_hues_are_told_apart(theme: str, vision: str) -> None:
    """0.02 in OKLab is about what is just noticed side by side; marks apart from each other need more."""
    found = colours(theme)
    seen = [lab(found[f"v{i}"], vision) for i in range(6)]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) >= 0.08
