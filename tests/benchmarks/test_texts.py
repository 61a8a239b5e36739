"""The tokens that all tools get alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from benchmarks import texts


def test_the_text_is_cut_to_just_the_tokens(tiny_llama: Path) -> None:
    text, tokens = texts.calibration(tiny_llama, 3, 32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert tokens.shape == (3, 32)
    whole = tokenizer(texts.documentation(), add_special_tokens=False).input_ids
    assert tokens.flatten().tolist() == whole[:96]
    again = tokenizer(text, add_special_tokens=False).input_ids
    assert again[:96] == whole[:96]
    assert len(again) < 4 * 32


def test_calibration_never_reaches_the_unseen_part(tiny_llama: Path) -> None:
    seen = len(texts.documentation()) - texts.UNSEEN_CHARACTERS
    with pytest.raises(ValueError, match="more than"):
        texts.calibration(tiny_llama, seen // 256)


def test_texts_of_the_user_are_found_and_cut(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "wikitext2-raw-test.txt").write_text("w" * 90_000)
    found = texts.scored_texts(tmp_path)
    assert found["WikiText-2 test"] == "w" * 80_000
    assert found.keys() == texts.scored_texts(None).keys() | {"WikiText-2 test"}


def test_windows_are_the_first_of_a_text(tiny_llama: Path) -> None:
    windows = texts.windows("abc" * 600, tiny_llama)
    ids = AutoTokenizer.from_pretrained(tiny_llama)("abc" * 600).input_ids
    assert windows.flatten().tolist() == ids[: 3 * 512]
