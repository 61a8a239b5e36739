"""English text that every Python brings along: its language documentation."""

from __future__ import annotations

from functools import cache
from pydoc_data.topics import topics
from typing import Literal

EVALUATION_CHARACTERS = 120_000
"""The end of the text is for scoring, what comes before it for calibrating; they never overlap."""


@cache
def builtin_text(part: Literal["calibration", "evaluation"]) -> str:
    """One of the two disjoint parts of the text; it differs between Python versions."""
    text = "\n\n".join(topics[key] for key in sorted(topics))
    return text[:-EVALUATION_CHARACTERS] if part == "calibration" else text[-EVALUATION_CHARACTERS:]
