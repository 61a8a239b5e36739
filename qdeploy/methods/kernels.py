"""Loops over weights as machine code: a processor's way to search scales, round columns and improve codes.

NumPy arrays in and out. The rows of a weight matrix do not depend on each other, so each thread takes a part
of them, and no result depends on how many threads there are. As tensor operations, rounding 3072 × 576
weights took 47 ms and searching their scales 36 ms on two cores; so they take 15 and 6.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qdeploy.schemes import PRESETS, Scheme

Floats = NDArray[np.float32]
Kernel = TypeVar("Kernel", bound=Callable[..., Any])

TILE = 64
"""Rows that are rounded together, side by side in the vector registers."""

LEAF = 32
"""Columns between two updates of all later ones; a multiple of UNROLLED."""

SCAN = 32
"""Codes that are looked at together for one that is to change; few are."""

UNROLLED = 4
"""Columns whose errors are taken off a later one in a single pass over it."""

EXPONENT = np.int32(0x7F800000)
"""The bits of a float32 that hold its exponent: by themselves they are the power of two of its magnitude."""

FASTMATH = {"contract", "reassoc", "nsz"}
"""What the compiler may assume. Not that a division is a product with the reciprocal: ties would differ."""


def _inlined(function: Kernel) -> Kernel:
    """The same for a part of kernels."""
    return cast(Kernel, numba.njit(inline="always", error_model="numpy")(function))


def _compiled(kernel: Kernel) -> Kernel:
    """Compile at the first call, in 2 s: numba's cache would be unpickled, and needs a folder to write."""
    return cast(Kernel, numba.njit(nogil=True, fastmath=FASTMATH, error_model="numpy")(kernel))


@dataclass(frozen=True)
class Levels:
    """Which levels a number format has, as numbers that the kernels compute with.

    Levels near x are multiples of a spacing: the power of two of |x|, but at least `least`, times `fraction`.
    Integers have the spacing 1 everywhere.

    Attributes:
        mask: of the bits of a float32 those of its exponent; 0 for integers.
        lowest, highest: limits of a level plus the zero point.
    """

    mask: np.int32
    least: np.float32
    fraction: np.float32
    lowest: np.float32
    highest: np.float32

    @classmethod
    def of(cls, scheme: Scheme) -> Levels:
        """Those of a scheme."""
        one = np.float32(1)
        if scheme.element is None:
            return cls(np.int32(0), one, one, np.float32(0), np.float32(scheme.qmax))
        element = scheme.minifloat
        least, fraction = np.exp2([element.least_exponent, -element.mantissa]).astype(np.float32)
        largest = np.float32(element.largest)
        return cls(EXPONENT, least, fraction, -largest, largest)

    @property
    def arguments(self) -> tuple[np.int32, np.float32, np.float32, np.float32, np.float32]:
        """In the order in which kernels take them."""
        return self.mask, self.least, self.fraction, self.lowest, self.highest


def fit_for(tensor: Tensor) -> bool:
    """Whether the kernels can work on this tensor where it is."""
    return tensor.device.type == "cpu"


def over_rows(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
    """Call `kernel(start, stop, *arguments)` for parts of the rows, in as many threads as torch has."""
    threads = torch.get_num_threads()
    step = TILE * -(-rows // (TILE * threads))
    if step >= rows:
        kernel(0, rows, *arguments)
        return
    with ThreadPoolExecutor(threads) as pool:
        parts = [
            pool.submit(kernel, start, min(start + step, rows), *arguments) for start in range(0, rows, step)
        ]
        for part in parts:
            part.result()


@_inlined
def _spacing(x: np.float32, mask: np.int32, least: np.float32, fraction: np.float32) -> Any:
    """How far levels near x are apart; see `Levels`."""
    power = np.int32(np.float32(x).view(np.int32) & mask).view(np.float32)
    return max(power, least) * fraction


@_compiled
def search_rows(
    start: int,
    stop: int,
    weight: Floats,
    importance: Floats,
    scales: Floats,
    zeros: Floats,
    mask: np.int32,
    least: np.float32,
    fraction: np.float32,
    lowest: np.float32,
    highest: np.float32,
    best: NDArray[np.int64],
) -> None:
    """Find for each group of `weight` [N, K] the candidate with the least weighted squared rounding error.

    Args:
        importance: [K].
        scales, zeros: candidates [C, N, G].
        best: [N, G], becomes the position of the first best candidate.
    """
    candidates, _, groups = scales.shape
    columns = weight.shape[1] // groups
    for n in range(start, stop):
        for g in range(groups):
            w = weight[n, g * columns : (g + 1) * columns]
            cost = importance[g * columns : (g + 1) * columns]
            smallest = np.float32(np.inf)
            for c in range(candidates):
                s, z = scales[c, n, g], zeros[c, n, g]
                inverse, error = np.float32(1) / s, np.float32(0)
                if mask == 0:
                    for k in range(columns):
                        q = min(max(np.rint(w[k] * inverse) + z, lowest), highest)
                        delta = s * (q - z) - w[k]
                        error += cost[k] * delta * delta
                else:
                    for k in range(columns):
                        x = w[k] * inverse
                        d = _spacing(x, mask, least, fraction)
                        delta = s * min(max(np.rint(x / d) * d, lowest), highest) - w[k]
                        error += cost[k] * delta * delta
                if error < smallest:
                    smallest = error
                    best[n, g] = c


@_compiled
def round_rows(
    start: int,
    stop: int,
    weight: Floats,
    order: NDArray[np.int64],
    lower: Floats,
    scales: Floats,
    zeros: Floats,
    mask: np.int32,
    least: np.float32,
    fraction: np.float32,
    lowest: np.float32,
    highest: np.float32,
    levels: Floats,
    targets: Floats,
    losses: Floats,
) -> None:
    """Round the columns of `weight` [N, K] in order, GPTQ's way; see `qdeploy.methods.gptq`.

    Args:
        order: [K].
        lower: Uᵀ [K, K], in this order.
        scales, zeros: [N, G]; zeros of minifloats are 0.
        mask, least, fraction, lowest, highest: see `Levels`.
        levels: [N, K], becomes the levels.
        targets: [N, K], becomes what each weight was when it was rounded.
        losses: [N], becomes Σ e².
    """
    columns, groups = weight.shape[1], scales.shape[1]
    width = columns // groups
    w, e = np.zeros((columns + 1, TILE), np.float32), np.zeros((LEAF, TILE), np.float32)
    level = np.zeros((columns, TILE), np.float32)
    s, z = np.ones((groups, TILE), np.float32), np.zeros((groups, TILE), np.float32)
    for top in range(start, stop, TILE):
        rows = min(TILE, stop - top)
        for n in range(rows):
            losses[top + n] = 0
            for j in range(columns):
                w[j, n] = weight[top + n, order[j]]
            for g in range(groups):
                s[g, n], z[g, n] = scales[top + n, g], zeros[top + n, g]
        for first in range(0, columns, LEAF):
            last = min(first + LEAF, columns)
            for j in range(first, last):
                g, inverse = order[j] // width, np.float32(1) / lower[j, j]
                for n in range(TILE):
                    x = w[j, n] / s[g, n]
                    d = _spacing(x, mask, least, fraction)
                    q = min(max(np.rint(x / d) * d + z[g, n], lowest), highest) - z[g, n]
                    level[j, n] = q
                    e[j - first, n] = (w[j, n] - s[g, n] * q) * inverse
                for n in range(rows):
                    losses[top + n] += e[j - first, n] * e[j - first, n]
                for i in range(j + 1, last):
                    u = lower[i, j]
                    for n in range(TILE):
                        w[i, n] -= u * e[j - first, n]
            # Where columns are left, the leaf is full. Two at a time read each error once; the last of an odd
            # number is taken with itself, in the row of w that is there for it.
            for i in range(last, columns, 2):
                other = min(i + 1, columns - 1)
                for j in range(0, LEAF, UNROLLED):
                    u0, u1 = lower[i, first + j], lower[i, first + j + 1]
                    u2, u3 = lower[i, first + j + 2], lower[i, first + j + 3]
                    v0, v1 = lower[other, first + j], lower[other, first + j + 1]
                    v2, v3 = lower[other, first + j + 2], lower[other, first + j + 3]
                    for n in range(TILE):
                        e0, e1, e2, e3 = e[j, n], e[j + 1, n], e[j + 2, n], e[j + 3, n]
                        w[i, n] -= u0 * e0 + u1 * e1 + u2 * e2 + u3 * e3
                        w[i + 1, n] -= v0 * e0 + v1 * e1 + v2 * e2 + v3 * e3
        for n in range(rows):
            for j in range(columns):
                levels[top + n, order[j]] = level[j, n]
                targets[top + n, order[j]] = w[j, n]


@_compiled
def descend_rows(
    start: int,
    stop: int,
    h: Floats,
    gradient: Floats,
    scales: Floats,
    zeros: Floats,
    mask: np.int32,
    least: np.float32,
    fraction: np.float32,
    lowest: np.float32,
    highest: np.float32,
    passes: int,
    levels: Floats,
) -> None:
    """Give each code in turn the value that is best beside all others; see `qdeploy.methods.descent`.

    Args:
        h: [K, K].
        gradient: (W − Q)H [N, K], kept up to date.
        scales, zeros: [N, G].
        mask, least, fraction, lowest, highest: see `Levels`.
        passes: how often at most each code is looked at.
        levels: [N, K], improved in place.
    """
    columns = len(h)
    width = columns // scales.shape[1]
    # Below a power of two minifloats are half as far apart as above it.
    share = np.float32(0.5) if mask == 0 else np.float32(0.25)
    half = np.empty(columns, np.float32)
    for n in range(start, stop):
        row = gradient[n]
        for j in range(columns):
            # The gradient at which the best value is half a step away.
            d = _spacing(levels[n, j], mask, least, fraction)
            half[j] = share * d * scales[n, j // width] * h[j, j]
        for _ in range(passes):
            changed = False
            for first in range(0, columns, SCAN):
                last, candidates = min(first + SCAN, columns), 0
                for j in range(first, last):
                    candidates += abs(row[j]) > half[j]
                if candidates == 0:
                    continue
                for j in range(first, last):
                    if abs(row[j]) <= half[j]:
                        continue
                    s, z, old = scales[n, j // width], zeros[n, j // width], levels[n, j]
                    x = old + row[j] / h[j, j] / s
                    d = _spacing(x, mask, least, fraction)
                    new = min(max(np.rint(x / d) * d + z, lowest), highest) - z
                    if new != old:
                        changed = True
                        levels[n, j] = new
                        half[j] = share * _spacing(new, mask, least, fraction) * s * h[j, j]
                        step, hj = s * (new - old), h[j]
                        for k in range(columns):
                            row[k] -= step * hj[k]
            if not changed:
                break


def compile_all() -> None:
    """Compile the kernels, by calling each with as little as possible. No thread is started."""

    def ones(*shape: int) -> Floats:
        return np.ones(shape, np.float32)

    order, kind = np.arange(LEAF), Levels.of(PRESETS["W4A16"]).arguments
    weight, square, grid = ones(1, LEAF), ones(LEAF, LEAF), ones(1, 1)
    search_rows(0, 1, weight, ones(LEAF), ones(1, 1, 1), ones(1, 1, 1), *kind, np.zeros((1, 1), np.int64))
    round_rows(0, 1, weight, order, square, grid, grid, *kind, ones(1, LEAF), ones(1, LEAF), ones(1))
    descend_rows(0, 1, square, ones(1, LEAF), grid, grid, *kind, 1, ones(1, LEAF))


@contextmanager
def compiling() -> Iterator[None]:
    """Compile the kernels in a thread meanwhile; who calls one earlier waits for it."""
    thread = threading.Thread(target=compile_all)
    thread.start()
    try:
        yield
    finally:
        thread.join()
