"""Perplexity protocols against known answers, and against the tools that they are named after."""

from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from qdeploy.bench.fidelity.corpora import C4, PTB_VALIDATION, WIKITEXT2, load_rows
from qdeploy.bench.fidelity.figures import score_windows, summarize
from qdeploy.bench.fidelity.protocols import PROTOCOLS
from qdeploy.bench.fidelity.text import load_windows
from qdeploy.bench.fidelity.wikitext import articles, detokenize, raw_file
from qdeploy.bench.fidelity.windows import Windows, chunks, crops, rolling, rolling_windows, stream
from qdeploy.bench.tokenizer import Encoder, encoder_of
from qdeploy.errors import UsageError
from tests.bench.evaluation.conftest import Serve, endpoint, exact_logprobs
from tests.conftest import byte_tokenizer

BOS = 256
ROWS = ["", " = One = \n", "", " The first , of two . \n", " = = Part = = \n", " It costs 1 @,@ 000 . \n"]
ROWS += ["", " = Two = \n", "", ' " Quoted " text of the second ; it \'s longer . \n']


def lm_eval(module: str) -> Any:
    return pytest.importorskip(f"lm_eval.{module}", reason="lm-eval is not installed: pip install lm-eval")


def encoder(bos: bool) -> Encoder:
    return Encoder(byte_tokenizer(), (BOS,) if bos else (), BOS)


def test_stream_is_the_protocol_of_the_gptq_papers() -> None:
    """BOS once, windows side by side, the tail dropped."""
    cut = stream("abcdefghij", encoder(bos=True), 4)
    ids = encoder(bos=False).encode
    assert cut.tokens == [[BOS, *ids("abc")], ids("defg")]


def test_the_papers_formula_is_this_one(serve: Serve, model: Any) -> None:
    """They sum mean-over-2047 · 2048 and divide by windows · 2048."""
    tokens = np.random.default_rng(3).integers(0, 1000, size=(4, 16)).tolist()
    windows = Windows("x", "0", tokens)
    losses = []
    for ids in tokens:
        logits = exact_logprobs(model, ids)
        losses.append(torch.nn.functional.nll_loss(logits[:-1], torch.tensor(ids[1:])) * 16)
    papers = torch.exp(torch.stack(losses).sum() / (4 * 16))
    with endpoint(serve(model)) as client:
        found = summarize(windows, score_windows(client, windows, 4, 2), None)
    assert found.perplexity.value == pytest.approx(float(papers), rel=1e-5)


def test_crops_are_drawn_as_in_gptq() -> None:
    """The draws of its datautils.py: a document, again while it is too short, then a place in it."""
    rows = ["x" * 5, "abcdefghijklmnop", "ABCDEFGHIJKLMNOPQRST"]
    bare = encoder(bos=False)
    random.seed(0)
    expected = []
    for _ in range(256):
        while True:
            ids = bare.encode(rows[random.randint(0, 2)])
            if len(ids) >= 8:
                break
        first = random.randint(0, len(ids) - 8 - 1)
        expected.append(ids[first : first + 8])
    assert crops(rows, bare, 8).tokens == expected


def test_documents_too_short_for_a_crop_are_refused() -> None:
    with pytest.raises(UsageError, match=r"longest of these 2 has 6.*gptq-c4-new"):
        crops(["abc", "abcdef"], encoder(bos=False), 8)


@pytest.mark.parametrize("bos", [False, True])
def test_llama_cpp_scores_the_second_half_behind_bos(bos: bool) -> None:
    cut = chunks(["0123456789abcdefghij\n"], encoder(bos), 8)
    text = [encoder(False).tokenizer.decode(window[1 if bos else 0 :]) for window in cut.tokens]
    # With BOS in front, every chunk's first token is BOS; in the later ones it takes a token's place.
    assert text == (["0123456", "89abcde"] if bos else ["01234567", "89abcdef"])
    assert all((window[0] == BOS) is bos for window in cut.tokens)
    # llama.cpp counts n_ctx − n_ctx/2 − 1 tokens a chunk.
    assert [len(window) - start for window, start in zip(cut.tokens, cut.starts, strict=True)] == [3, 3]


@pytest.mark.parametrize("length", [2, 3, 8, 13, 50])
@pytest.mark.parametrize("count", [1, 2, 12, 13, 24, 25, 49, 200])
def test_rolling_windows_are_lm_evals(length: int, count: int) -> None:
    utils = lm_eval("utils")
    tokens = list(range(100, 100 + count))
    pairs = map(
        utils.make_disjoint_window,
        utils.get_rolling_token_windows(tokens, prefix_token=7, max_seq_len=length - 1, context_len=1),
    )
    assert rolling_windows(tokens, 7, length) == [
        (context + tokens, len(context)) for context, tokens in pairs
    ]


@pytest.mark.parametrize("length", [5, 16])
def test_rolling_scores_every_token_once(length: int) -> None:
    tokens = list(range(1, 42))
    windows = rolling_windows(tokens, 0, length)
    assert [token for window, start in windows for token in window[start:]] == tokens
    assert all(start >= 1 and len(window) <= length for window, start in windows)


def test_articles_are_split_at_their_titles() -> None:
    first, second = articles(raw_file(ROWS))
    assert first.startswith(" = One = \n") and "= = Part = =" in first
    assert second.startswith(" = Two = \n") and "One" not in second


def test_the_raw_file_has_a_space_on_blank_lines() -> None:
    assert raw_file(["", " = T = \n", ""]) == " \n = T = \n \n"


@pytest.mark.parametrize(
    "text",
    [
        *articles(raw_file(ROWS)),
        "1 @.@ 5 @-@ inch ( 3 @,@ 810 mm ) , a : ; . b",
        "the boys ' \" best \" hits ' of ' 1999 [ sic ] { x } at 40 ° N 's",
        "= = = = Deep = = = = \n text \n\n end",
    ],
)
def test_text_is_detokenized_as_by_lm_eval(text: str) -> None:
    tasks = lm_eval("tasks.wikitext.preprocess_wikitext")
    assert detokenize(text) == tasks.wikitext_detokenizer({"page": text})


def test_word_and_byte_perplexity_are_lm_evals(serve: Serve, model: Any) -> None:
    """exp(−Σ LL / words) over the articles as they were before detokenizing."""
    tasks = lm_eval("tasks.wikitext.preprocess_wikitext")
    cut = rolling(ROWS, encoder(bos=False), 32)
    windows = Windows("x", "0", cut.tokens, cut.starts, "lm-eval-wikitext", cut.documents)
    with endpoint(serve(model)) as client:
        found = summarize(windows, score_windows(client, windows, 4, 4), None)
    weighted = []
    for page in articles(raw_file(ROWS)):
        total = 0.0
        for window, start in rolling_windows(encoder(False).encode(detokenize(page)), BOS, 32):
            rows = exact_logprobs(model, window)[start - 1 : -1]
            total += float(rows.gather(1, torch.tensor(window[start:])[:, None]).double().sum())
        weighted.append(tasks.process_results({"page": page}, (total,)))
    for name, scale in (("word_perplexity", 1.0), ("byte_perplexity", 1.0), ("bits_per_byte", math.log(2))):
        total, units = (sum(x) for x in zip(*(w[name] for w in weighted), strict=True))
        value = math.exp(-total / units) if scale == 1.0 else -total / units / scale
        estimate = getattr(found, name)
        assert estimate.value == pytest.approx(value, rel=1e-5)
        assert estimate.low <= estimate.value <= estimate.high


def write_wikitext(folder: Path, rows: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps({"text": row}) + "\n" for row in rows)
    (folder / "wikitext2-raw-test.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_a_protocol_takes_all_of_its_text(tmp_path: Path) -> None:
    folder = write_wikitext(tmp_path, ["x" * 5000])
    found = load_windows("gptq-wikitext2", encoder(bos=True), folder=folder)
    assert (len(found.tokens), {len(w) for w in found.tokens}) == (2, {2048})
    assert found.protocol == "gptq-wikitext2"
    assert found.source.endswith("wikitext2-raw-test.jsonl")


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({"count": 2}, "gptq-wikitext2"),
        ({"count": 1}, "gptq-wikitext2 (first 1 of 2 windows)"),
        ({"length": 512}, "gptq-wikitext2 (windows of 512)"),
        ({"length": 512, "count": 3}, "gptq-wikitext2 (windows of 512, first 3 of 9 windows)"),
        ({"max_model_len": 2049}, "gptq-wikitext2"),
        ({"max_model_len": 2048}, "gptq-wikitext2 (windows of 2047)"),
    ],
)
def test_what_is_changed_is_another_protocol(tmp_path: Path, options: dict[str, int], label: str) -> None:
    """So are windows that a served context cuts down: it must hold one generated token besides."""
    folder = write_wikitext(tmp_path, ["x" * 5000])
    assert load_windows("gptq-wikitext2", encoder(bos=False), folder=folder, **options).protocol == label


def test_a_cut_article_has_no_figures_per_word(tmp_path: Path) -> None:
    folder = write_wikitext(tmp_path, ROWS)
    whole, part = (load_windows("lm-eval-wikitext", encoder(False), n, 16, folder=folder) for n in (None, 2))
    assert whole.documents is not None and len(whole.documents.words) == 2
    assert part.documents is None


def test_joins_are_those_of_the_papers() -> None:
    bare, rows = encoder(bos=False), ["ab", "cd", "ef"]
    texts = {name: PROTOCOLS[name].cut(rows, bare, 2).text for name in PROTOCOLS if name != "gptq-c4"}
    assert texts["gptq-wikitext2"] == texts["gptq-ptb"] == "ab\n\ncd\n\nef"
    assert texts["gptq-ptb-new"] == texts["gptq-c4-new"] == "ab cd ef"
    assert texts["llama.cpp"] == "abcdef"


def test_c4_new_stops_at_256_windows_and_1100_documents() -> None:
    cut = PROTOCOLS["gptq-c4-new"].cut(["abcd"] * 2000, encoder(bos=False), 4)
    assert len(cut.tokens) == 256
    assert cut.text.count("abcd") == 1100


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "raw"])
def test_wikitext_is_read_from_each_of_its_files(tmp_path: Path, kind: str) -> None:
    if kind == "jsonl":
        write_wikitext(tmp_path, ROWS)
    elif kind == "parquet":
        pq.write_table(pa.table({"text": ROWS}), tmp_path / "wikitext-test-00000.parquet")
    else:
        (tmp_path / "wiki.test.raw").write_text(raw_file(ROWS), encoding="utf-8")
    assert load_rows(WIKITEXT2, tmp_path)[1] == ROWS


def test_ptb_and_c4_are_read_from_their_files(tmp_path: Path) -> None:
    (tmp_path / "ptb.valid.txt").write_text(" no it was n't <unk> \n N\u2028years \n", encoding="utf-8")
    row = {"text": "a line\u2028of one row", "url": "x"}
    name = "c4-validation.00000-of-00008.json.gz"
    (tmp_path / name).write_bytes(gzip.compress((json.dumps(row, ensure_ascii=False) + "\n").encode()))
    assert load_rows(PTB_VALIDATION, tmp_path)[1] == ["no it was n't <unk>", "N\u2028years"]
    assert load_rows(C4, tmp_path)[1] == [row["text"]]


def test_rows_in_two_columns_are_joined(tmp_path: Path) -> None:
    (tmp_path / "c4.jsonl").write_text('{"prefix": "ab", "gold_completion": "cd"}\n', encoding="utf-8")
    assert load_rows(C4, tmp_path)[1] == ["abcd"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c4.jsonl", b'{"body": "x"}\n', "has a row with body; needed: text or prefix"),
        ("c4.jsonl", b"not json\n", "cannot be read"),
        ("c4-validation.00000-of-00008.json.gz", b"not gzip", "cannot be read"),
    ],
)
def test_broken_corpora_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_rows(C4, tmp_path)


def test_a_corpus_that_is_nowhere_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError, match=r"No ptb\.valid\.txt under .*--data-dir DIR.*qdeploy\[hub\]"):
        load_rows(PTB_VALIDATION, tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        load_rows(PTB_VALIDATION, tmp_path / "missing")


def test_too_short_a_text_is_refused(tmp_path: Path) -> None:
    folder = write_wikitext(tmp_path, ["short"])
    with pytest.raises(UsageError, match="shorter than one window of 2048"):
        load_windows("gptq-wikitext2", encoder_of(byte_tokenizer()), folder=folder)
