"""Records built through their own models: inputs for the report, not measurements."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qdeploy.bench.records import (
    Candidate,
    Disagreement,
    Distribution,
    Engine,
    Estimate,
    Fidelity,
    LoadResult,
    MonteCarlo,
    Percentile,
    RunRecord,
    TaskScore,
    TokenStatistics,
)
from qdeploy.checkpoint.manifest import Calibration, Manifest, Model, Module, Totals
from qdeploy.files import write_json, write_text

PROVENANCE = {
    "created": "2026-01-02T03:04:05+00:00",
    "command": "qdeploy run plan.yaml",
    "qdeploy": "0.1.0",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    "cpu": "Example CPU @ 2.0 GHz",
    "cores": 2,
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
}
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NEEDED = {0.5: 10, 0.9: 29, 0.95: 59, 0.99: 299}


def distribution(median: float, count: int) -> Distribution:
    percentiles = [
        Percentile(q=q, value=v, low=v * 0.93, high=v * 1.08, needed=needed)
        if count >= needed
        else Percentile(q=q, value=None, needed=needed)
        for (q, needed), v in zip(NEEDED.items(), (median * f for f in (1, 1.4, 1.6, 2.1)), strict=True)
    ]
    return Distribution(count=count, mean=median * 1.1, percentiles=percentiles)


def load_result(tpot: float, count: int) -> LoadResult:
    return LoadResult(
        arrival="poisson",
        rate=2.0,
        prompt_tokens_asked=128,
        output_tokens_asked=32,
        seed=0,
        requests=count,
        completed=count,
        failed=0,
        duration_s=count / 2,
        achieved_rate=1.98,
        input_tokens=128 * count,
        output_tokens=32 * count,
        request_throughput=1.98,
        output_token_throughput=63.4,
        peak_in_flight=5,
        schedule_lag_p99_ms=1.2,
        tokens_per_chunk=1.0,
        metrics={
            "ttft_sched_ms": distribution(tpot * 4.1, count),
            "ttft_ms": distribution(tpot * 4, count),
            "tpot_ms": distribution(tpot, count),
            "itl_ms": distribution(tpot, count * 31),
            "e2e_sched_ms": distribution(tpot * 36, count),
            "e2e_ms": distribution(tpot * 35, count),
        },
    )


def fidelity(quantized: bool) -> Fidelity:
    rng = random.Random(0)
    kl = [0.02 + 0.01 * rng.random() for _ in range(24)] if quantized else []
    compared: dict[str, Any] = (
        {
            "baseline_perplexity": Estimate(value=17.2, low=16.1, high=18.4),
            "perplexity_ratio": Estimate(value=1.041, low=1.032, high=1.05),
            "kl_lower_bound": Estimate(value=0.0251, low=0.023, high=0.0272),
            "kl_intersection": Estimate(value=0.0251, low=0.023, high=0.0272),
            "tokens": TokenStatistics(
                ln_perplexity_correlation=0.98,
                ln_perplexity_ratio=Estimate(value=0.0402, low=0.0315, high=0.0488),
                perplexity_difference=Estimate(value=0.7, low=0.5, high=0.9),
                design_effect=2.1,
                kl_percentiles={"maximum": 1.2, "99.9%": 0.61, "99%": 0.21, "50%": 0.011, "minimum": 0.0},
                dp_mean=Estimate(value=-0.0041, low=-0.005, high=-0.003),
                dp_rms=Estimate(value=0.052, low=0.05, high=0.054),
                dp_percentiles={"maximum": 0.4, "50%": 0.0, "minimum": -0.6},
            ),
            "worst": [
                Disagreement(
                    window=3,
                    position=77,
                    kl=1.2,
                    context="if a < b:\n    return",
                    token=" <a>",
                    p_baseline=0.61,
                    p_variant=0.02,
                    baseline=[Candidate(token=" <a>", p=0.61), Candidate(token=" b", p=0.2)],
                    variant=[Candidate(token=" b", p=0.7)],
                )
            ],
            "monte_carlo": MonteCarlo(
                samples=24,
                prompt_tokens=64,
                positions=3072,
                method="intersection",
                log_ratio=Estimate(value=0.03, low=0.02, high=0.04),
                k3=Estimate(value=0.031, low=0.027, high=0.035),
                kl_lower_bound=Estimate(value=0.029, low=0.026, high=0.032),
            ),
            "tail_mass": 0.0021,
            "same_top_token": Estimate(value=0.913, low=0.9, high=0.925),
        }
        if quantized
        else {}
    )
    return Fidelity(
        text="standard library documentation",
        text_sha256="ab" * 32,
        windows=24,
        window_tokens=512,
        positions=12264,
        top_k=64,
        method="intersection" if quantized else "none",
        perplexity=Estimate(value=17.9 if quantized else 17.2, low=16.0, high=19.1),
        per_window_kl=kl,
        **compared,
    )


def task_score(quantized: bool, title: str = "Smoke: grammar") -> TaskScore:
    score = TaskScore(
        task="smoke_grammar",
        title=title,
        source="generated",
        items=640,
        accuracy=Estimate(value=0.871, low=0.843, high=0.895),
    )
    if quantized:
        score.baseline_accuracy = Estimate(value=0.88, low=0.852, high=0.903)
        score.difference = Estimate(value=-0.009, low=-0.027, high=0.009)
        score.recovery = Estimate(value=0.99, low=0.969, high=1.01)
        score.flips = Estimate(value=0.0547, low=0.04, high=0.075)
        score.mcnemar_p = 0.41
        score.margin = 0.01
        score.verdict = "inconclusive"
        score.items_needed = 1480
    return score


def manifest(layers: int = 30) -> Manifest:
    modules = [
        Module(
            name=f"model.layers.{i}.{'self_attn' if kind[0] in 'qkvo' else 'mlp'}.{kind}",
            scheme="W4A16 symmetric, group 64",
            method="gptq",
            shape=(576, 576),
            relative_error=0.004 * (1 + math.sin(i / 4) ** 2 + KINDS.index(kind) / 5),
            damp=0.01,
            seconds=0.4,
        )
        for i in range(layers)
        for kind in KINDS
    ]
    return Manifest(
        provenance=PROVENANCE | {"command": "qdeploy quantize SmolLM2 -o OUT"},
        recipe={"model": "SmolLM2", "rules": [{"match": "Linear", "scheme": "W4A16", "stages": ["gptq"]}]},
        recipe_sha256="cd" * 32,
        calibration=Calibration(source="builtin", sha256="ef" * 32, samples=64, sequence_length=512, seed=0),
        model=Model(
            source="models/SmolLM2-135M-Instruct",
            architecture="LlamaForCausalLM",
            model_type="llama",
            parameters=134_515_008,
            dtype="bfloat16",
            sha256="12" * 32,
        ),
        modules=modules,
        totals=Totals(
            source_bytes=269_000_000, output_bytes=118_000_000, seconds=210, peak_rss_bytes=1_400_000_000
        ),
    )


def record(kind: str, name: str, quantized: bool, **parts: Any) -> RunRecord:
    engine = Engine(
        name="vllm",
        version="0.32.0",
        base_url="http://127.0.0.1:8000/v1",
        model=name,
        local=True,
        kernel="CPUWNA16LinearKernel" if quantized else None,
        quantization="compressed-tensors" if quantized else None,
        arguments=["--max-model-len", "2048"],
        load_seconds=31.5,
        checkpoint=f"variants/{name}/checkpoint",
    )
    return RunRecord.model_validate(
        {"kind": kind, "name": name, "provenance": PROVENANCE, "engine": engine, **parts}
    )


def checkpoint(folder: Path, quantized: bool) -> None:
    folder.mkdir(parents=True)
    save_file({"weight": torch.zeros(1000 if quantized else 3000)}, folder / "model.safetensors")
    write_json(folder / "config.json", CONFIG)
    if quantized:
        write_text(folder / "qdeploy.json", manifest().model_dump_json())


def variant(folder: Path, name: str, quantized: bool, requests: int, title: str) -> None:
    """All that the line leaves for one variant."""
    checkpoint(folder / "checkpoint", quantized)
    runs = {
        "bench": {"load": load_result(8.4 if quantized else 11.9, requests)},
        "eval": {
            "fidelity": fidelity(quantized),
            "tasks": [task_score(quantized, title)],
            "baseline": "variants/baseline/eval" if quantized else None,
        },
    }
    if quantized:
        runs["verify"] = {"verify": {"verdict": "pass", "ratio": 0.91, "limit": 2.0, "positions": 1016}}
    for kind, parts in runs.items():
        (folder / kind).mkdir()
        record(kind, name, quantized, **parts).save(folder / kind)


CampaignMaker = Callable[..., Path]


@pytest.fixture
def make_campaign(tmp_path: Path) -> CampaignMaker:
    """A campaign folder with a baseline and quantized variants of the given names."""

    def make(
        *names: str, requests: int = 60, title: str = "Smoke: grammar", folder: Path = tmp_path / "campaign"
    ) -> Path:
        entries = []
        for name in ("baseline", *(names or ("w4a16-gptq",))):
            safe = f"variants/{name}"
            variant(folder / safe, name, name != "baseline", requests, title)
            kind = "baseline" if name == "baseline" else "quantized"
            entries.append({"name": name, "kind": kind, "checkpoint": f"{safe}/checkpoint"})
        write_json(folder / "campaign.json", {"plan_text": "model: SmolLM2\n", "variants": entries})
        return folder

    return make
