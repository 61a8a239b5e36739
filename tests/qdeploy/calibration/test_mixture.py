"""Samples of several texts: each in its share, each as if it were alone."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from qdeploy.calibration import CalibrationSet, load
from qdeploy.calibration.mixture import apportion
from qdeploy.errors import CalibrationError
from qdeploy.recipe import CalibrationConfig
from tests.conftest import byte_tokenizer

BOS = 256
LENGTH = 16


@pytest.fixture(scope="module")
def plain() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def with_bos() -> Any:
    """A tokenizer that puts BOS before every text, of a model that chats."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BOS)]
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    return tokenizer


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Three files, each of its own letters."""
    made = []
    for name, letters in {"a": "abcdefg", "k": "klmnopqr", "t": "tuvwxyz"}.items():
        path = tmp_path / f"{name}.txt"
        path.write_text("".join(random.Random(name).choices(letters, k=1000)))
        made.append(str(path))
    return made


def config(source: list[str] | str, samples: int = 12, seed: int = 0) -> CalibrationConfig:
    fields = {"source": source, "samples": samples, "sequence_length": LENGTH, "seed": seed}
    return CalibrationConfig.model_validate(fields)


def rows(tokens: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in tokens.tolist()]


def counts(found: CalibrationSet) -> dict[str, int]:
    return {Path(part.source).stem: part.samples for part in found.parts}


@pytest.mark.parametrize("seed", [0, 3])
def test_one_text_gives_the_windows_that_its_seed_draws_in_their_order(
    texts: list[str], plain: Any, seed: int
) -> None:
    stream = plain(Path(texts[0]).read_text()).input_ids
    drawn = sorted(random.Random(seed).sample(range(1000 // LENGTH), 12))
    expected = torch.tensor([stream[i * LENGTH : (i + 1) * LENGTH] for i in drawn])
    for spelling in (texts[0], [texts[0]], [f"{texts[0]}@3"]):
        assert torch.equal(load(config(spelling, seed=seed), plain).tokens, expected)


def test_a_mixture_is_the_samples_of_each_text_alone_shuffled(texts: list[str], plain: Any) -> None:
    mixed = load(config([texts[0], f"{texts[1]}@2", f"{texts[2]}@3"]), plain)
    assert counts(mixed) == {"t": 6, "k": 4, "a": 2}
    alone = [load(config(part.source, part.samples), plain) for part in mixed.parts]
    expected = [row for each in alone for row in rows(each.tokens)]
    assert sorted(rows(mixed.tokens)) == sorted(expected)
    assert rows(mixed.tokens) != expected
    assert [part.sha256 for part in mixed.parts] == [each.sha256 for each in alone]
    assert mixed.sha256 == hashlib.sha256(mixed.tokens.numpy().tobytes()).hexdigest()


def test_a_mixture_is_the_same_for_the_same_seed(texts: list[str], plain: Any) -> None:
    first, same, other = (load(config(texts, seed=seed), plain).tokens for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_any_part_of_the_samples_is_a_mixture(texts: list[str], plain: Any) -> None:
    found = load(config(texts, samples=60), plain).tokens
    for half in found.split(30):
        kinds = [plain.decode(row[:1]) for row in half]
        assert all(4 < sum(kind in letters for kind in kinds) < 20 for letters in ("abcdefg", "tuvwxyz"))


def test_every_sample_of_a_mixture_starts_with_one_bos(texts: list[str], with_bos: Any) -> None:
    found = load(config(["builtin", *texts], samples=40), with_bos)
    assert found.bos
    assert (found.tokens[:, 0] == BOS).all()
    assert not (found.tokens[:, 1:] == BOS).any()


def test_the_default_is_prose_code_and_chat_in_the_models_template(with_bos: Any) -> None:
    found = load(CalibrationConfig(samples=9, sequence_length=256), with_bos)
    assert counts(found) == {"builtin-prose": 3, "builtin-code": 3, "builtin-chat": 3}
    text = with_bos.decode(found.tokens.flatten())
    assert "[user]" in text and "[assistant]" in text


def test_a_model_without_a_template_gets_no_chat(plain: Any) -> None:
    found = load(CalibrationConfig(samples=5, sequence_length=64), plain)
    assert counts(found) == {"builtin-prose": 3, "builtin-code": 2}


def test_weights_of_parts_that_are_named_twice_add_up(texts: list[str], plain: Any) -> None:
    found = load(config(["builtin", "builtin-code", texts[0], texts[0]], samples=8), plain)
    assert counts(found) == {"builtin-code": 3, "builtin-prose": 1, "a": 4}


def test_shares_are_whole_add_up_and_are_off_by_less_than_one() -> None:
    chance = random.Random(0)
    for _ in range(200):
        weights = {str(i): chance.random() for i in range(chance.randint(1, 8))}
        shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        samples = chance.randint(1, 200)
        found = apportion(shares, samples)
        assert sum(found.values()) == samples
        assert all(count > 0 for count in found.values())
        assert all(abs(found.get(name, 0) - share * samples) < 1 for name, share in shares.items())


def test_a_text_too_short_for_its_share_is_named_and_what_is_proposed_works(
    texts: list[str], tmp_path: Path, plain: Any
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("x" * 3 * LENGTH)
    asked = [texts[0], f"{short}@2"]
    message = (
        rf"short\.txt has {3 * LENGTH} tokens; its part of the 12, 8 samples of {LENGTH} need {8 * LENGTH}\. "
        r"Use --samples 4 or a smaller weight"
    )
    with pytest.raises(CalibrationError, match=message):
        load(config(asked), plain)
    assert counts(load(config(asked, samples=4), plain)) == {"short": 3, "a": 1}
    assert counts(load(config([texts[0], f"{short}@0.25"]), plain)) == {"a": 10, "short": 2}
