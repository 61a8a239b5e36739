from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from qdeploy.calibration import load
from qdeploy.errors import CalibrationError, UnknownNameError
from qdeploy.recipe import CalibrationConfig, Source
from tests.conftest import byte_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
)
BOS, EOS = 256, 257


@pytest.fixture(scope="module")
def plain() -> Any:
    """A tokenizer that adds nothing."""
    return byte_tokenizer()


@pytest.fixture(scope="module")
def with_bos() -> Any:
    """A tokenizer that puts BOS before every text, and whose chat template writes BOS as well."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def config(source: Path | str, samples: int = 4, length: int = 16, seed: int = 0) -> CalibrationConfig:
    return CalibrationConfig(
        source=(Source(name=str(source)),), samples=samples, sequence_length=length, seed=seed
    )


def text_file(folder: Path, characters: int) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(chr(97 + i % 26) for i in range(characters)))
    return path


def jsonl_file(folder: Path, rows: list[Any]) -> Path:
    path = folder / "text.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_windows_of_a_text_are_contiguous_and_full(tmp_path: Path, plain: Any) -> None:
    text = text_file(tmp_path, 64)
    found = load(config(text), plain)
    assert found.tokens.shape == (4, 16)
    assert found.tokens.dtype == torch.int64
    assert plain.decode(found.tokens.flatten()) == text.read_text()
    assert (found.parts[0].documents, found.bos, found.source) == (1, False, str(text))


def test_samples_are_drawn_by_seed_and_hashed(tmp_path: Path, plain: Any) -> None:
    path = jsonl_file(tmp_path, [{"text": f"document number {i}. "} for i in range(40)])
    for source in (text_file(tmp_path, 997), path):
        first, same, other = (load(config(source, seed=seed), plain) for seed in (1, 1, 2))
        assert torch.equal(first.tokens, same.tokens)
        assert first.sha256 == same.sha256
        assert first.sha256 != other.sha256
        assert not torch.equal(first.tokens, other.tokens)


def test_documents_are_packed_without_padding_and_read_only_as_needed(tmp_path: Path, plain: Any) -> None:
    path = jsonl_file(tmp_path, [{"text": f"<{i:02}>"} for i in range(50)])
    found = load(config(path), plain)
    assert found.parts[0].documents == 16
    packed = plain.decode(found.tokens.flatten())
    assert sorted(packed[i : i + 4] for i in range(0, 64, 4)) != [f"<{i:02}>" for i in range(16)]
    assert len({packed[i : i + 4] for i in range(0, 64, 4)}) == 16


def test_bos_starts_each_sample_once_where_the_tokenizer_adds_it(tmp_path: Path, with_bos: Any) -> None:
    turns = [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "a test."}]
    for path in (text_file(tmp_path, 200), jsonl_file(tmp_path, [{"messages": turns}] * 9)):
        found = load(config(path), with_bos)
        assert found.bos
        assert found.tokens.shape == (4, 16)
        assert (found.tokens[:, 0] == BOS).all()
        assert not (found.tokens[:, 1:] == BOS).any()
        assert not (found.tokens == EOS).any()


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "hello"}]},
        {"conversations": [{"from": "human", "value": "hello"}]},
        {"conversations": [{"role": "user", "content": "hello"}]},
    ],
)
def test_chats_are_rendered_with_the_models_template(tmp_path: Path, with_bos: Any, row: Any) -> None:
    found = load(config(jsonl_file(tmp_path, [row]), samples=1, length=12), with_bos)
    assert with_bos.decode(found.tokens[0, 1:]) == "[user]hello"


def test_parquet_text_is_read(tmp_path: Path, plain: Any) -> None:
    path = tmp_path / "text.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["abcdefgh"] * 8, "other": [1] * 8}), path)
    assert plain.decode(load(config(path, length=8), plain).tokens[0]) == "abcdefgh"


def test_too_short_a_text_says_how_much_there_is_and_what_fits(tmp_path: Path, plain: Any) -> None:
    with pytest.raises(CalibrationError) as error:
        load(config(text_file(tmp_path, 200), samples=4, length=64), plain)
    assert "has 200 tokens; 4 samples of 64 need 256" in str(error.value)
    assert "--samples 3 or --sequence-length 50" in str(error.value)
    with pytest.raises(CalibrationError, match=r"has 10 tokens.*Use a longer text"):
        load(config(text_file(tmp_path, 10), samples=4, length=64), plain)


def test_what_the_error_proposes_works(tmp_path: Path, with_bos: Any) -> None:
    path = text_file(tmp_path, 200)
    with pytest.raises(CalibrationError, match=r"Use --samples 3 or --sequence-length 51\."):
        load(config(path, samples=4, length=64), with_bos)
    assert load(config(path, samples=3, length=64), with_bos).samples == 3
    assert load(config(path, samples=4, length=51), with_bos).samples == 4


def broken_parquet(folder: Path) -> Path:
    path = folder / "text.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["text"]}), path)
    return path


def number_parquet(folder: Path) -> Path:
    path = folder / "text.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    return path


def cut_parquet(folder: Path) -> Path:
    path = broken_parquet(folder)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def latin1(folder: Path) -> Path:
    path = folder / "latin.txt"
    path.write_bytes("é".encode("latin-1"))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: text_file(folder, 0), r"text\.txt \(0 bytes\) holds no text"),
        (lambda folder: folder / "none.txt", r"none\.txt does not exist"),
        (lambda folder: jsonl_file(folder, []), "holds no text"),
        (lambda folder: jsonl_file(folder, [{"text": "a"}, {"body": "b"}]), r"line 2 needs .*it has body"),
        (lambda folder: jsonl_file(folder, [["a"]]), "it has nothing"),
        (lambda folder: jsonl_file(folder, [{"messages": [{"role": "user"}]}]), "line 1: a turn needs role"),
        (
            lambda folder: jsonl_file(folder, [{"messages": [{"role": "tool", "content": ""}]}]),
            "refuses it: no tools",
        ),
        (broken_parquet, r'needs a column "text" of strings; it has body \(string\)'),
        (number_parquet, r'needs a column "text" of strings; it has text \(int64\)'),
        (cut_parquet, r"text\.parquet is not a whole Parquet file"),
        (latin1, "is not UTF-8 text"),
    ],
)
def test_broken_sources_are_one_clear_error(tmp_path: Path, with_bos: Any, make: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        load(config(make(tmp_path)), with_bos)


def test_a_chat_needs_a_template(tmp_path: Path, plain: Any) -> None:
    path = jsonl_file(tmp_path, [{"messages": [{"role": "user", "content": "hello"}]}])
    with pytest.raises(CalibrationError, match="no chat template"):
        load(config(path), plain)


def test_jsonl_that_is_not_json_names_the_line(tmp_path: Path, plain: Any) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(CalibrationError, match=r"bad\.jsonl, line 2 is not JSON"):
        load(config(path), plain)


def test_an_unknown_source_names_the_near_ones(plain: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"'wikitext'\. Did you mean .*'wikitext2'.*FILE\.txt"):
        load(config("wikitext"), plain)
