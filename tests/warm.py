"""Importing this compiles the kernels, for processes that are then forked; it starts no thread."""

from __future__ import annotations

import numpy as np

from qdeploy.methods.kernels import Floats, descend_rows, round_rows, search_rows


def ones(*shape: int) -> Floats:
    return np.ones(shape, np.float32)


order, codes = np.arange(32), np.zeros((1, 32), np.uint8)
search_rows(0, 1, ones(1, 32), ones(32), ones(2, 1, 1), ones(2, 1, 1), 15, np.zeros((1, 1), np.int64))
round_rows(0, 1, ones(1, 32), order, ones(32, 32), ones(1, 1), ones(1, 1), 15, codes, ones(1, 32), ones(1))
descend_rows(0, 1, ones(32, 32), order, ones(1, 32), ones(1, 1), ones(1, 1), 15, codes)
