"""The whole line on a real model in the real engine, by the commands that the README names."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdeploy.bench.accuracy.encoding import encode_request
from qdeploy.bench.records import load_record
from qdeploy.bench.tokenizer import load_encoder
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.probe import probe
from qdeploy.engines.vllm import RunningEngine, VllmEngine
from qdeploy.formats.dequantize import dequantized_model
from tests.e2e.conftest import qdeploy

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def engine(deploy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    log = tmp_path_factory.mktemp("log") / "engine.log"
    with VllmEngine().launch(deploy, log=log, arguments=["--max-model-len", "1024"]) as running:
        yield running


def test_the_engine_runs_a_quantized_kernel(engine: RunningEngine) -> None:
    assert engine.quantization == "compressed-tensors"
    assert engine.kernel


def test_verify_passes_on_what_was_quantized(engine: RunningEngine, deploy: Path) -> None:
    result = json.loads(qdeploy("verify", deploy, "--url", engine.base_url, "--json").stdout)
    assert result["verify"]["verdict"] == "pass"
    assert result["verify"]["layers_checked"] == 210


def test_evaluation_pairs_the_endpoint_with_a_baseline(
    engine: RunningEngine, deploy: Path, tmp_path: Path
) -> None:
    text = ["--text", "builtin", "--windows", "4", "--window-tokens", "128", "--top-k", "32"]
    asked = [*text, "--tasks", "smoke", "--limit", "40"]
    qdeploy("eval", engine.base_url, *asked, "-o", tmp_path / "first")
    qdeploy("eval", engine.base_url, *asked, "--baseline", tmp_path / "first", "-o", tmp_path / "second")
    record = load_record(tmp_path / "second")
    assert record.fidelity is not None
    assert record.fidelity.kl_lower_bound is not None
    # The same model twice: what is left is the engine's own noise.
    assert 0 <= record.fidelity.kl_lower_bound.value < 0.01
    assert record.fidelity.same_top_token is not None
    assert record.fidelity.same_top_token.value > 0.9
    assert all(task.verdict != "fail" for task in record.tasks)


def test_one_request_for_all_labels_says_what_scoring_each_says(engine: RunningEngine) -> None:
    with Endpoint(engine.base_url, engine.model) as endpoint:
        assert probe(endpoint).listed_logprobs
        encoder = load_encoder(endpoint, None)
        labels = [
            encode_request(encoder, "Is snow white? Answer:", f" {word}") for word in ("yes", "no", "Mt")
        ]
        found = endpoint.next_token(labels[0].ids[:-1], [label.ids[-1] for label in labels], listed=True)
        scores = [endpoint.score(label.ids, greedy=True) for label in labels]
    assert all(len(label.ids) == label.start + 1 for label in labels)
    totals = [score.total(label.start) for label, score in zip(labels, scores, strict=True)]
    assert [found.logprobs[label.ids[-1]] for label in labels] == pytest.approx(totals, abs=0.05)
    for label, score in zip(labels, scores, strict=True):
        assert score.is_greedy(label.start) == (found.likeliest == label.ids[-1])


def test_load_run_counts_what_it_asked_for(engine: RunningEngine, tmp_path: Path) -> None:
    load = ["--rate", "2", "--num-requests", "6", "--prompt-tokens", "32", "--output-tokens", "8"]
    qdeploy("bench", engine.base_url, *load, "-o", tmp_path / "run")
    found = load_record(tmp_path / "run").load
    assert found is not None
    assert (found.completed, found.failed, found.output_tokens) == (6, 0, 48)
    assert found.telemetry is not None
    assert (found.telemetry.prefix_queries, found.telemetry.prefix_hits) == (6 * 32, 0)
    assert found.metrics["ttft_ms"].percentiles[0].value
    assert found.metrics["ttft_ms"].percentiles[-1].value is None, "six requests cannot tell a p99"


def test_the_checkpoint_loads_unchanged_in_transformers(checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(1000, 1064).unsqueeze(0)
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        difference = theirs(tokens).logits - dequantized_model(checkpoint)(tokens).logits
    assert difference.abs().max() < 1e-3


def test_verify_fails_on_two_swapped_nibbles(deploy: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(deploy, broken)
    layer = swap_nibbles(broken)
    result = qdeploy("verify", broken, expect=1)
    assert layer in result.stderr


def swap_nibbles(folder: Path) -> str:
    """Exchange the first two unequal neighbouring 4-bit codes of some layer; returns the layer's name."""
    for path in sorted(folder.glob("*.safetensors")):
        tensors = load_file(path)
        for name, words in tensors.items():
            if not name.endswith("weight_packed"):
                continue
            low, high = words & 0xF, (words >> 4) & 0xF
            row, column = (low != high).nonzero()[0].tolist()
            word = words[row, column]
            words[row, column] = (word & ~0xFF) | (low[row, column] << 4) | high[row, column]
            save_file(tensors, path, metadata={"format": "pt"})
            return name.removesuffix(".weight_packed")
    raise AssertionError(f"{folder} holds no packed layer")
