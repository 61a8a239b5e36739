from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from qdeploy.calibration import load, own_text
from qdeploy.calibration.own_text import Author, write_own_text
from qdeploy.errors import Interrupted, OutputError, ResourceError, UsageError
from qdeploy.progress import Task
from qdeploy.recipe import CalibrationConfig
from tests.conftest import byte_tokenizer

SHOWN = Task("", 1 << 20, None)


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def write(model: Path, output: Path, samples: int = 5, seed: int = 0) -> list[str]:
    write_own_text(str(model), output, samples=samples, length=16, seed=seed)
    return texts(output)


def test_the_same_seed_writes_the_same_texts(tiny_llama: Path, tmp_path: Path) -> None:
    first, again = (write(tiny_llama, tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    assert first == again
    assert first != write(tiny_llama, tmp_path / "c.jsonl", seed=1)
    assert len(set(first)) == 5
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl", "c.jsonl"}


def test_tokens_are_drawn_from_the_models_own_distribution(tiny_llama: Path) -> None:
    """Under the model that drew them log p(v) is −H(p) on average: sharper or cut off, it would be more."""
    tokens = Author(tiny_llama).draw(32, 64, "0", SHOWN)
    assert tokens.shape == (32, 64)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    with torch.no_grad():
        logp = model(input_ids=tokens).logits[:, :-1].float().log_softmax(-1)
    found = logp.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    excess = (found + entropy).flatten()
    assert abs(excess.mean()) < 4 * excess.std() / excess.numel() ** 0.5
    # That it could be seen: the same of tokens of which the unlikelier half does not count.
    greedier = torch.where(found > logp.median(-1).values, found, torch.zeros(())) + entropy
    assert abs(greedier.mean()) > 4 * excess.std() / excess.numel() ** 0.5


def test_batches_of_neighbouring_seeds_share_no_text(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_text, "BATCH", 2)
    seeds = [set(write(tiny_llama, tmp_path / f"{seed}.jsonl", 6, seed)) for seed in range(4)]
    assert len(set.union(*seeds)) == 4 * 6


def test_texts_longer_than_the_model_reads_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"reads 256 tokens, .* take 257\. Use --length 255"):
        write_own_text(str(tiny_llama), tmp_path / "own.jsonl", samples=1, length=257, seed=0)
    assert not list(tmp_path.iterdir())


def test_memory_that_runs_out_is_told_with_what_is_kept(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_: object) -> list[str]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(Author, "write", short)
    with pytest.raises(ResourceError, match=r"after 0 of 5 texts, of which 32 are .*\. Take a shorter"):
        write(tiny_llama, tmp_path / "own.jsonl")


def test_no_text_begins_with_a_special_token_or_is_like_the_others(tiny_llama: Path) -> None:
    first = Author(tiny_llama).draw(1500, 2, "0", SHOWN)[:, 0]
    assert not set(first.tolist()) & set(byte_tokenizer().all_special_ids)
    assert len(set(first.tolist())) > 200


def test_a_text_goes_on_after_its_end_and_nobody_elses_chance_changes(tiny_llama: Path) -> None:
    before = torch.get_rng_state()
    tokens = Author(tiny_llama).draw(64, 64, "0", SHOWN)
    assert torch.equal(torch.get_rng_state(), before)
    assert (tokens[:, 1:-1] == byte_tokenizer().eos_token_id).any()


def test_bos_comes_first_where_the_tokenizer_puts_it(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_text, "default_bos", lambda _: 256)
    author, asked = Author(tiny_llama), []
    generate = author._model.generate
    monkeypatch.setattr(
        author._model, "generate", lambda start, **k: asked.append(start) or generate(start, **k)
    )
    found = author.draw(3, 16, "0", SHOWN)
    assert asked[0].shape == (3, 2)
    assert (asked[0][:, 0] == 256).all()
    assert torch.equal(asked[0][:, 1], found[:, 0])
    assert found.shape == (3, 16)


def test_an_interrupted_call_goes_on_and_ends_as_if_it_had_not_been(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_text, "BATCH", 2)
    whole = write(tiny_llama, tmp_path / "whole.jsonl")
    written, original = [], Author.write

    def interrupted(self: Author, count: int, length: int, seed: str, shown: Task) -> list[str]:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(count)
        return original(self, count, length, seed, shown)

    with (
        monkeypatch.context() as patched,
        pytest.raises(Interrupted, match=r"after 4 of 5 .*\.partial\. The same .* goes on"),
    ):
        patched.setattr(Author, "write", interrupted)
        write(tiny_llama, tmp_path / "own.jsonl")
    assert not (tmp_path / "own.jsonl").exists()
    with pytest.raises(OutputError, match=r"holds 4 texts .* that differs: seed 0, now 1\. Repeat"):
        write(tiny_llama, tmp_path / "own.jsonl", seed=1)
    written.clear()
    assert write(tiny_llama, tmp_path / "own.jsonl") == whole
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_there_is_not_overwritten(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write(tiny_llama, tmp_path / "own.jsonl")
    with pytest.raises(OutputError, match=r"own\.txt would not be read.*Name it FILE\.jsonl"):
        write(tiny_llama, tmp_path / "own.txt")


def test_a_model_larger_than_the_memory_is_refused_with_another_way(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_text, "free_memory", lambda: 1000)
    with pytest.raises(
        ResourceError,
        match=r"224\.62 KiB in 16 .* 1000 bytes .* an engine that serves",
    ):
        write(tiny_llama, tmp_path / "own.jsonl")


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3_moe"])
def test_other_families_write_too(family: str, tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    assert len(write(tiny_model(family), tmp_path / "own.jsonl", samples=3)) == 3


def test_calibration_reads_it(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    write(tiny_llama, path, samples=12)
    config = CalibrationConfig.model_validate(
        {"source": ["builtin", f"{path}@2"], "samples": 6, "sequence_length": 16}
    )
    found = load(config, byte_tokenizer())
    assert {part.source: part.samples for part in found.parts}[str(path)] == 4
