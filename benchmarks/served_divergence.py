"""python -m benchmarks.served_divergence CAMPAIGN: what is seen of a divergence over HTTP, and what it is.

CAMPAIGN is a folder of `qdeploy run` whose plan has `eval`. Its text, and its samples where there are any,
are scored here with both models, dequantized and in float32, over the whole vocabulary. What the engine's own
arithmetic adds to a divergence is in the served figures alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.table import table
from qdeploy.bench.fidelity import monte_carlo
from qdeploy.bench.fidelity.divergence import intersection, two_pass
from qdeploy.bench.fidelity.text import load_windows
from qdeploy.bench.fidelity.token_table import TokenTable, concatenate, read_tokens
from qdeploy.bench.fidelity.windows import Windows
from qdeploy.bench.records import Estimate, Fidelity, Method, RunRecord, load_record
from qdeploy.bench.tokenizer import encoder_of
from qdeploy.formats.dequantize import dequantized_model
from qdeploy.progress import progress


@dataclass(frozen=True)
class Exact:
    """Means over the scored positions, in nats: the divergence, and both bounds of it by exact arithmetic."""

    kl: float
    two_pass: float
    intersection: float

    def by(self, method: Method) -> float:
        """The bound by one method."""
        return self.two_pass if method == "two-pass" else self.intersection


def exact(baseline: Any, variant: Any, windows: Windows, top_k: int) -> Exact:
    """Score all windows with two models in this process."""
    kl, firsts, seconds = [], [], []
    with progress("Exact divergence", len(windows.tokens)) as bar:
        for index, ids in enumerate(windows.tokens):
            start = windows.start(index)
            p, q = (_logprobs(model, ids, start) for model in (baseline, variant))
            kl.append((p.exp() * (p - q)).sum(1).double().numpy())
            tokens = torch.tensor(ids[start:])
            firsts.append(_table(p, tokens, index, top_k))
            chosen = q.gather(1, torch.from_numpy(firsts[-1].top_ids).long())
            seconds.append(_table(q, tokens, index, top_k, chosen))
            bar.advance()
    first = concatenate(firsts)
    second = replace(concatenate(seconds), chosen_ids=first.top_ids)
    return Exact(
        float(np.concatenate(kl).mean()),
        float(two_pass(first, second).kl.mean()),
        float(intersection(first, second).kl.mean()),
    )


@torch.inference_mode()
def _logprobs(model: Any, ids: list[int], start: int) -> Tensor:
    """float32 [T − start, V]: what is predicted at the scored positions."""
    logits: Tensor = model(torch.tensor([ids])).logits[0, start - 1 : -1]
    return logits.float().log_softmax(-1)


def _table(
    logprobs: Tensor, tokens: Tensor, window: int, top_k: int, chosen: Tensor | None = None
) -> TokenTable:
    top = logprobs.topk(top_k, dim=-1)
    return TokenTable(
        window=np.full(len(tokens), window, np.int32),
        token=tokens.numpy().astype(np.int32),
        logprob=logprobs.gather(1, tokens[:, None])[:, 0].numpy(),
        top_ids=top.indices.numpy().astype(np.int32),
        top_logprobs=top.values.numpy(),
        chosen=None if chosen is None else chosen.numpy(),
    )


def compare(campaign: Path, data: Path | None) -> str:
    """A Markdown table for each quantized variant of the campaign; `data` holds the texts of protocols."""
    variants = json.loads((campaign / "campaign.json").read_text(encoding="utf-8"))["variants"]
    folders = {entry["name"]: campaign / entry["checkpoint"] for entry in variants}
    first = load_record(campaign / "variants" / "baseline" / "eval")
    baseline = dequantized_model(folders.pop("baseline"), torch.float32)
    parts = []
    for name, folder in folders.items():
        record = load_record(campaign / "variants" / name / "eval")
        assert record.fidelity is not None
        texts = dict(_texts(campaign, first, folder, data))
        model = dequantized_model(folder, torch.float32)
        found = {
            what: exact(baseline, model, windows, record.fidelity.top_k) for what, windows in texts.items()
        }
        parts.append(f"{name}, K = {record.fidelity.top_k}\n\n{_rows(record.fidelity, found)}")
    return "\n\n".join(parts)


def _texts(
    campaign: Path, record: RunRecord, folder: Path, data: Path | None
) -> Iterator[tuple[str, Windows]]:
    """The text that was scored, and the samples that the baseline drew."""
    encoder = encoder_of(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    settings = record.settings
    count, length = settings["windows"], settings["window_tokens"]
    windows = load_windows(settings["text"], encoder, count, length, folder=data)
    yield "text", windows
    if settings["samples"]:
        drawn = read_tokens(campaign / "variants" / "baseline" / "eval", monte_carlo.SAMPLES)
        yield "samples", monte_carlo.continued(windows, drawn)


def _rows(fidelity: Fidelity, found: dict[str, Exact]) -> str:
    check = fidelity.monte_carlo
    text, samples = found["text"], found.get("samples")
    served_two_pass = fidelity.kl_lower_bound if fidelity.method == "two-pass" else None
    rows: list[tuple[str, Estimate | None, float | None]] = [
        (f"text, {fidelity.positions:,} tokens: divergence", None, text.kl),
        ("lower bound, two-pass", served_two_pass, text.two_pass),
        ("lower bound, intersection", fidelity.kl_intersection, text.intersection),
    ]
    if check and samples:
        rows += [
            (f"samples, {check.positions:,} tokens: divergence", None, samples.kl),
            ("k3", check.k3, None),
            ("mean log-ratio", check.log_ratio, None),
            (f"lower bound, {check.method}", check.kl_lower_bound, samples.by(check.method)),
        ]
    return table(
        ["nats a token", "served [95 % interval]", "in this process, float32"],
        [[name, _text(served), "" if here is None else f"{here:.4f}"] for name, served, here in rows],
    )


def _text(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.served_divergence", description=__doc__)
    parser.add_argument("campaign", type=Path, help="folder that `qdeploy run` wrote")
    parser.add_argument("--data", type=Path, help="folder with the texts of protocols")
    options = parser.parse_args()
    print(compare(options.campaign, options.data))
