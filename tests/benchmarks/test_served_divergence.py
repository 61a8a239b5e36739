"""The divergence in this process, against torch's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.served_divergence import exact
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe


def test_the_divergence_is_torchs_and_the_bounds_are_below_it(tiny_llama: Path, tmp_path: Path) -> None:
    quantize(Recipe.from_flags(str(tiny_llama), method="rtn", group_size="32"), tmp_path / "out")
    p, q = (dequantized_model(folder, torch.float32) for folder in (tiny_llama, tmp_path / "out"))
    torch.manual_seed(1)
    tokens = torch.randint(256, (3, 16))
    windows = Windows("random", "0", tokens.tolist(), starts=[1, 5, 9])
    found = exact(p, q, windows, top_k=8)
    rows = []
    with torch.no_grad():
        for ids, start in zip(tokens, windows.starts, strict=True):
            first, second = (m(ids[None]).logits[0, start - 1 : -1].log_softmax(-1) for m in (p, q))
            rows.append(torch.nn.functional.kl_div(second, first, reduction="none", log_target=True).sum(-1))
    assert found.kl == pytest.approx(float(torch.cat(rows).mean()), rel=1e-4)
    assert 0 < found.intersection < found.two_pass < found.kl
