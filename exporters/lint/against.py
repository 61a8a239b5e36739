"""Decoded weights beside those of the 16-bit model: what no look at the codes alone can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from qdeploy.errors import CheckpointError
from qdeploy.exporters.base import Finding
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.lint.subject import Subject
from qdeploy.formats.awq import ORDER
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.quantized import QuantizedLinear

DIFFERENT = rule(
    "QD311",
    "error",
    "Decoded weights are not those of the 16-bit model",
    """Rows and columns are brought to one length first, so that scales which AWQ and SmoothQuant move from
    layer to layer do not matter. What correlates less than 0.9 then was packed in another order than it
    is read, has another layer's tensors, or was rotated (which no comparison of weights survives). If
    one of the usual mistakes mends it, the finding says which.""",
)
ROUNDS = 4
"""In which columns and rows are brought to one length by turns: each undoes a part of the other."""

ALIKE, MENDED, LEAST_BITS = 0.9, 0.95, 3
"""Correlations: below the first layers differ, above the second a mistake explains it; not for 2 bits."""


def _swapped(codes: Tensor, dim: int, apart: int) -> Tensor:
    """Rows or columns so far apart in each other's place."""
    size = codes.shape[dim]
    return codes.index_select(dim, torch.arange(size) ^ apart) if size % (2 * apart) == 0 else codes


def _octets(codes: Tensor, places: Tensor) -> Tensor:
    n, k = codes.shape
    return codes.view(n // 8, 8, k)[:, places].reshape(n, k) if n % 8 == 0 else codes


MISTAKES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "low and high nibbles are swapped along columns": lambda codes: _swapped(codes, 1, 1),
    "low and high nibbles are swapped along rows": lambda codes: _swapped(codes, 0, 1),
    "low and high nibbles of AWQ's words are swapped": lambda codes: _swapped(codes, 0, 2),
    "rows are packed in plain order, not in AWQ's": lambda codes: _octets(codes, torch.tensor(ORDER)),
    "rows are packed in AWQ's order twice": lambda codes: _octets(codes, torch.tensor(ORDER).argsort()),
}
"""What may have happened → codes without it."""


def check_against(subject: Subject, original: CheckpointReader) -> Iterator[Finding]:
    """Every layer that both have, beside the 16-bit model's."""
    for layer in subject.quantized():
        name = f"{layer.name}.weight"
        if name not in original or original.shape(name) != (layer.n, layer.k):
            continue
        try:
            q = subject.packed.read(layer.name)
        except CheckpointError:
            continue  # told by check_codes
        if q.scheme.bits < LEAST_BITS:
            continue
        weight = even(original.get(name).float())
        found = correlation(even(q.dequantize()), weight)
        if not found >= ALIKE:
            problem = f"correlates {found:.3f} with {name} of {original.folder}"
            yield DIFFERENT(f"{problem}{_explained(q, weight)}", "Pack it again", layer.name)


def _explained(q: QuantizedLinear, weight: Tensor) -> str:
    for told, repaired in MISTAKES.items():
        found = correlation(even(replace(q, stored=repaired(q.codes)).dequantize()), weight)
        if found > MENDED:
            return f"; {told}: without that {found:.3f}"
    return ""


def even(weight: Tensor) -> Tensor:
    """[N, K] float, columns and rows brought to about one length each, whatever factors they had."""
    for _ in range(ROUNDS):
        weight = weight / weight.norm(dim=0).clamp_min(1e-30)
        weight = weight / weight.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return weight


def correlation(a: Tensor, b: Tensor) -> float:
    """Cosine of two matrices."""
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-30))
