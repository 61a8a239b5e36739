"""Whether a calibration set is enough to trust a Hessian made from it."""

from __future__ import annotations

from collections.abc import Iterator

from qdeploy.calibration.mixture import CalibrationSet

TOKENS_PER_COLUMN = 2
"""H of K columns has rank K only from K tokens on. The spectrum of a random H of n tokens is spread by
(1 ± √(K/n))² around the true one (Marchenko and Pastur): a factor of 34 at n = 2K, without bound at K."""

FEWEST_SAMPLES = 16
"""Tokens of one sequence share a topic; with fewer, a single text makes up more than 6 % of H."""

SHORTEST_SEQUENCE = 128
"""Tokens. The first of a sequence attends to itself alone and is driven like no other: it should be rare."""

LARGEST_SHARE = 0.9
"""Of the samples that may come from one source. GPTQ fits what it sees, and loses elsewhere."""


def concerns(calibration: CalibrationSet, widest: tuple[str, int] | None) -> list[str]:
    """What speaks against the set, one line each, with what to do about it; empty where nothing does.

    Args:
        widest: name and number of input columns of the widest layer that is calibrated; None where there is
            none, and only the scales of a cache are.
    """
    few = _few(calibration, *widest) if widest else ()
    return [*few, *_short(calibration), *_one_sided(calibration)]


def _few(calibration: CalibrationSet, name: str, columns: int) -> Iterator[str]:
    tokens, wanted = calibration.tokens.numel(), TOKENS_PER_COLUMN * columns
    samples = max(-(-wanted // calibration.sequence_length), FEWEST_SAMPLES)
    if tokens < wanted:
        yield (
            f"{tokens:,} calibration tokens are few for the {columns:,} input columns of {name}, whose "
            f"Hessian wants {wanted:,}. Use --samples {samples}."
        )
    elif calibration.samples < FEWEST_SAMPLES:
        yield (
            f"{calibration.samples} calibration samples are few, whatever their length: one text weighs "
            f"{1 / calibration.samples:.0%}. Use --samples {samples}."
        )


def _short(calibration: CalibrationSet) -> Iterator[str]:
    if calibration.sequence_length < SHORTEST_SEQUENCE:
        yield (
            f"Calibration sequences of {calibration.sequence_length} tokens are short; models are served on "
            f"longer ones. Use --sequence-length {SHORTEST_SEQUENCE} or more."
        )


def _one_sided(calibration: CalibrationSet) -> Iterator[str]:
    largest = calibration.parts[0]
    share = largest.samples / calibration.samples
    if share > LARGEST_SHARE:
        yield (
            f"{share:.0%} of the calibration comes from {largest.source}; on other kinds of text the model "
            f"may lose more. Unless it is a mixture itself, add to it: --calibration {largest.source} "
            "--calibration builtin."
        )
