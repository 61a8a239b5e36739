"""Codes that cannot be right, told from the codes themselves.

Weights of a group are about zero and, in units of their row's spread, about as wide as those of the row's
other groups. That fixes how codes lie: around their zero point, and narrow where the scale is large. Codes
that were packed in one order and are read in another lose both, without one tensor of a wrong shape.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.exporters.base import Finding
from qdeploy.exporters.layers import Layer
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.lint.subject import Subject
from qdeploy.exporters.lint.tensors import AGAIN
from qdeploy.formats.awq import ORDER
from qdeploy.quantized import QuantizedLinear

OFF_CENTRE = rule(
    "QD306",
    "error",
    "Codes do not lie around their zero point",
    """The mean of a trained layer's weights is near zero, so codes average to their zero point within a
    small part of a step. A layer that is off by one step has zero points of another version of GPTQ's
    format; one that is off by half the grid has signed codes that were taken for unsigned ones.""",
)
NOT_INTERLEAVED = rule(
    "QD307",
    "error",
    "AWQ's codes are packed in plain order",
    """AWQ packs eight output channels into a word as 0, 2, 4, 6, 1, 3, 5, 7. Packed in plain order they
    load, and six of eight output channels get the codes of another one. Told by spreads: within a row,
    groups with a large scale have narrow codes, and here that holds for the plain order alone.""",
)
AT_THE_ENDS = rule(
    "QD308",
    "error",
    "Codes lie at the ends of the grid",
    """Most weights are small, so most codes are near their zero points. Where more than half are in the outer
    quarters of the grid, scales are far too small, or signed codes were read as unsigned ones.""",
)
NOT_A_NUMBER = rule(
    "QD309",
    "error",
    "Codes that stand for no number",
    'E4M3 has two codes for "not a number", 127 and 255. A weight that is one of them poisons every token.',
)
UNDECODABLE = rule(
    "QD310",
    "error",
    "A layer cannot be decoded",
    "Its tensors contradict each other, for which no other rule has a name.",
)

CENTRED = 1 / 30
"""Part of the grid that codes may be off their zero points on average: of 4 bits half a step."""
UNLIKELY = 4
"""Standard errors of the mean that are no chance."""
OUTER = 0.75
"""Part of half the grid, beyond which most codes of a layer cannot be."""
MISORDERED = 0.8
"""Spread of a row's groups in the plain order over that in the interleaved one, from which on it is wrong."""


def check_codes(subject: Subject) -> Iterator[Finding]:
    """Every layer is decoded once."""
    interleaved, plain = 0.0, 0.0
    for layer in subject.quantized():
        try:
            q = subject.packed.read(layer.name)
        except CheckpointError as error:
            yield UNDECODABLE(str(error), AGAIN, layer.name)
            continue
        yield from _check_numbers(layer, q) if q.scheme.element else _check_integers(layer, q)
        if subject.format == "awq" and q.scales.shape[1] > 1:
            interleaved += unevenness(q.codes, q.scales)
            plain += unevenness(_read_plainly(q.codes), q.scales)
    if plain < MISORDERED * interleaved:
        yield NOT_INTERLEAVED(
            f"rows are {plain / interleaved:.2f} times as uneven when words are read in plain order",
            f"Pack them as 0, 2, 4, 6, 1, 3, 5, 7. {AGAIN}",
        )


def levels(q: QuantizedLinear) -> Tensor:
    """Steps of each code of integers from its zero point, float32 [N, K]."""
    if q.zeros is None:
        return q.codes.float() - q.scheme.zero
    size = q.scheme.group_size or q.shape[1]
    groups = torch.arange(q.shape[1]) // size if q.column_groups is None else q.column_groups.long()
    return q.codes.float() - q.zeros.float()[:, groups]


def _check_numbers(layer: Layer, q: QuantizedLinear) -> Iterator[Finding]:
    bad = int(((q.codes & 127) == 127).sum()) if q.scheme.bits == 8 else 0
    if bad:
        yield NOT_A_NUMBER(f"{bad} of {q.codes.numel()} weights are not a number", AGAIN, layer.name)


def _check_integers(layer: Layer, q: QuantizedLinear) -> Iterator[Finding]:
    steps = levels(q)
    shift, by_chance = float(steps.mean()), float(steps.std()) / steps.numel() ** 0.5
    if abs(shift) > max(0.5, CENTRED * q.scheme.qmax) + UNLIKELY * by_chance:
        yield OFF_CENTRE(f"codes are {shift:+.2f} steps off their zero points on average", AGAIN, layer.name)
    far = float((steps.abs() >= OUTER * q.scheme.zero).float().mean())
    if far > 0.5 and q.scheme.bits > 2:
        problem = (
            f"{far:.0%} of the codes are {int(OUTER * q.scheme.zero)} steps or more off their zero points"
        )
        yield AT_THE_ENDS(problem, AGAIN, layer.name)


def unevenness(codes: Tensor, scales: Tensor) -> float:
    """How much the spread of groups differs within rows: variance of its logarithm, summed over rows.

    Args:
        codes: uint8 [N, K].
        scales: [N, G].
    """
    n, g = scales.shape
    spread = codes.view(n, g, -1).float().std(-1).clamp_min(1e-2)
    return float((scales.float().clamp_min(1e-30) * spread).log().var(1).sum())


def _read_plainly(codes: Tensor) -> Tensor:
    """Codes [N, K], their rows in the order that words have from the lowest field up."""
    n, k = codes.shape
    return codes.view(n // 8, 8, k)[:, torch.tensor(ORDER)].reshape(n, k)
