"""Python's own text: the parts are what they say, and none shows what is scored."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from qdeploy.calibration import builtin
from qdeploy.errors import CalibrationError

WORDS = 12


def runs(text: str) -> set[tuple[str, ...]]:
    """Every run of WORDS words."""
    words = text.split()
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


def answers() -> list[str]:
    return [chat.turns[1]["content"] for chat in builtin.chat()]


def test_no_part_shares_a_sentence_with_the_scored_text() -> None:
    scored = runs(builtin.evaluation_text())
    assert len(scored) > 10_000
    for part in ("".join(builtin.prose()), "".join(builtin.code()), *answers()):
        assert scored.isdisjoint(runs(part))


def test_the_scored_text_is_the_end_of_the_documentation() -> None:
    text = builtin.evaluation_text()
    assert len(text) == 120_000
    assert builtin._documentation().endswith(text)


def test_the_documentation_repeats_itself_so_that_cutting_it_in_two_is_not_enough() -> None:
    """Why `_unseen` is needed at all; if this fails, it is not."""
    text = builtin._documentation()[: -len(builtin.evaluation_text())]
    assert not runs(builtin.evaluation_text()).isdisjoint(runs(text))


def test_there_is_enough_of_each_kind_and_it_is_what_it_says() -> None:
    prose, code = "".join(builtin.prose()), "".join(builtin.code())
    assert len(prose) > 300_000
    assert len(code) > 1_000_000
    assert sum(map(len, answers())) > 200_000
    assert prose.count(" the ") / len(prose) > 2 * code.count(" the ") / len(code) > 0
    assert code.count("\n    def ") > 1_000 > prose.count("\n    def ")


def test_no_piece_is_more_than_a_few_samples() -> None:
    for part in (builtin.prose(), builtin.code()):
        assert max(map(len, part)) < 3 * builtin.PIECE
        assert len(part) > 100


def test_chats_are_questions_with_the_documented_answer() -> None:
    by_question = {chat.turns[0]["content"]: chat.turns for chat in builtin.chat()}
    (turns,) = (turns for question, turns in by_question.items() if "textwrap.wrap " in question)
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert turns[1]["content"].startswith("Wrap a single paragraph of text, returning a list")


def test_modules_held_out_for_scoring_are_in_no_part() -> None:
    assert "class ArgumentParser" not in "".join(builtin.code())
    assert not any("heapq" in chat.where or "argparse" in chat.where for chat in builtin.chat())
    assert "Heap queue algorithm" not in "".join(builtin.prose())


def test_a_python_without_library_sources_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(CalibrationError, match=r"has no source files.*--calibration FILE"):
        builtin._sources.__wrapped__()
