"""Loops over weights as machine code: a processor's way to search scales, round columns and improve codes.

NumPy arrays in and out. The rows of a weight matrix do not depend on each other, so each thread takes a part
of them, and no result depends on how many threads there are. As tensor operations, rounding 3072 × 576
weights took 47 ms and searching their scales 36 ms on two cores; so they take 15 and 6.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]
Kernel = TypeVar("Kernel", bound=Callable[..., None])

TILE = 64
"""Rows that are rounded together, side by side in the vector registers."""

LEAF = 32
"""Columns between two updates of all later ones; a multiple of UNROLLED."""

UNROLLED = 4
"""Columns whose errors are taken off a later one in a single pass over it."""

FASTMATH = {"contract", "reassoc", "nsz"}
"""What the compiler may assume. Not that a division is a product with the reciprocal: ties would differ."""


def _compiled(kernel: Kernel) -> Kernel:
    """Compile at the first call, in 3 s: numba's cache would be unpickled, and needs a folder to write."""
    return cast(Kernel, numba.njit(nogil=True, fastmath=FASTMATH)(kernel))


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


@_compiled
def search_rows(
    start: int,
    stop: int,
    weight: Floats,
    importance: Floats,
    scales: Floats,
    zeros: Floats,
    qmax: int,
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
    lowest, highest = np.float32(0), np.float32(qmax)
    for n in range(start, stop):
        for g in range(groups):
            w = weight[n, g * columns : (g + 1) * columns]
            cost = importance[g * columns : (g + 1) * columns]
            least = np.float32(np.inf)
            for c in range(candidates):
                s, z = scales[c, n, g], zeros[c, n, g]
                inverse, error = np.float32(1) / s, np.float32(0)
                for k in range(columns):
                    q = min(max(np.rint(w[k] * inverse) + z, lowest), highest)
                    delta = s * (q - z) - w[k]
                    error += cost[k] * delta * delta
                if error < least:
                    least = error
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
    qmax: int,
    codes: Codes,
    targets: Floats,
    losses: Floats,
) -> None:
    """Round the columns of `weight` [N, K] in order, GPTQ's way; see `qdeploy.methods.gptq`.

    Args:
        order: [K].
        lower: Uᵀ [K, K], in this order.
        scales, zeros: [N, G].
        codes: [N, K], becomes the codes.
        targets: [N, K], becomes what each weight was when it was rounded.
        losses: [N], becomes Σ e².
    """
    columns, groups = weight.shape[1], scales.shape[1]
    width = columns // groups
    lowest, highest = np.float32(0), np.float32(qmax)
    w, e = np.zeros((columns, TILE), np.float32), np.zeros((LEAF, TILE), np.float32)
    q8 = np.zeros((columns, TILE), np.uint8)
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
                    q = min(max(np.rint(w[j, n] / s[g, n]) + z[g, n], lowest), highest)
                    q8[j, n] = np.uint8(q)
                    e[j - first, n] = (w[j, n] - s[g, n] * (q - z[g, n])) * inverse
                for n in range(rows):
                    losses[top + n] += e[j - first, n] * e[j - first, n]
                for i in range(j + 1, last):
                    u = lower[i, j]
                    for n in range(TILE):
                        w[i, n] -= u * e[j - first, n]
            # Where columns are left, the leaf is full.
            for i in range(last, columns):
                for j in range(0, LEAF, UNROLLED):
                    u0, u1 = lower[i, first + j], lower[i, first + j + 1]
                    u2, u3 = lower[i, first + j + 2], lower[i, first + j + 3]
                    for n in range(TILE):
                        w[i, n] -= u0 * e[j, n] + u1 * e[j + 1, n] + u2 * e[j + 2, n] + u3 * e[j + 3, n]
        for n in range(rows):
            for j in range(columns):
                codes[top + n, order[j]] = q8[j, n]
                targets[top + n, order[j]] = w[j, n]


@_compiled
def descend_rows(
    start: int,
    stop: int,
    h: Floats,
    order: NDArray[np.int64],
    gradient: Floats,
    scales: Floats,
    zeros: Floats,
    qmax: int,
    codes: Codes,
) -> None:
    """Give each code in turn the value that is best beside all others; see `qdeploy.methods.descent`.

    Args:
        h: [K, K].
        order: [K].
        gradient: (W − Q)H [N, K], kept up to date.
        scales, zeros: [N, G].
        codes: [N, K], improved in place.
    """
    columns = len(h)
    width = columns // scales.shape[1]
    lowest, highest = np.float32(0), np.float32(qmax)
    for n in range(start, stop):
        row = gradient[n]
        for j in order:
            s, z = scales[n, j // width], zeros[n, j // width]
            old = np.float32(codes[n, j])
            new = min(max(np.rint(old - z + row[j] / h[j, j] / s) + z, lowest), highest)
            if new != old:
                codes[n, j] = np.uint8(new)
                step, hj = s * (new - old), h[j]
                for k in range(columns):
                    row[k] -= step * hj[k]
