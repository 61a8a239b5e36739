"""Conditions, exit codes, and what a pipeline reads."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner

from qdeploy.bench.commands.compare import compare
from qdeploy.bench.compare import compare_folders, decide, parse_condition
from qdeploy.bench.records import load_record
from qdeploy.errors import ComparisonError, QDeployError, UsageError

from .conftest import answered, write_bench, write_eval, write_text_eval

APP = typer.Typer()
APP.command()(compare)


def run(*arguments: str | Path) -> tuple[int, str]:
    """Exit code and standard output, as the `qdeploy` command would end."""
    result = CliRunner().invoke(APP, [str(argument) for argument in arguments])
    if isinstance(result.exception, QDeployError):
        return result.exception.exit_code, str(result.exception)
    return result.exit_code, result.stdout


@pytest.mark.parametrize(
    ("text", "figure", "task", "sign", "limit"),
    [
        ("recovery_lcb<0.99", "recovery_lcb", None, "<", 0.99),
        (" p99_tpot_ms > 50 ", "p99_tpot_ms", None, ">", 50.0),
        ("p99.9_ttft_ms>=1e3", "p99.9_ttft_ms", None, ">=", 1000.0),
        ("recovery[arc easy] <= -.5", "recovery", "arc easy", "<=", -0.5),
        ("flips_ucb[*]>0.1", "flips_ucb", "*", ">", 0.1),
    ],
)
def test_conditions_are_read(text: str, figure: str, task: str | None, sign: str, limit: float) -> None:
    found = parse_condition(text)
    assert (found.figure, found.task, found.sign, found.limit) == (figure, task, sign, limit)


@pytest.mark.parametrize(
    "text",
    ["recovery", "recovery<", "recovery==1", "recovery<x", "__import__('os')<1", "recovery<1 or 1<2", ""],
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not of the form"):
        parse_condition(text)


def test_an_unknown_figure_lists_those_there_are() -> None:
    with pytest.raises(
        UsageError, match=r"no figure 'recover_lcb'.*recovery.*p99_tpot_ms.*kl_lower_bound|kl"
    ):
        parse_condition("recover_lcb<0.99")


def test_conditions_decide_by_the_figure_that_they_name(pair: tuple[Path, Path]) -> None:
    comparison = compare_folders(pair[0], [pair[1]], 0.01)
    verdicts = {
        text: decide(comparison, [parse_condition(text)]).verdict
        for text in (
            "recovery<0.97",
            "recovery<0.99",
            "recovery_lcb[b]<0.99",
            "recovery_lcb[a]<0.99",
            "recovery_lcb[a:acc]<0.99",
            "difference[*]<-0.005",
            "flips_ucb[b]>0.01",
            "answer_changes>0.5",
        )
    }
    assert list(verdicts.values()) == ["pass", "fail", "pass", "fail", "fail", "fail", "pass", "pass"]


def test_the_lower_bound_is_the_one_that_makes_the_verdict(pair: tuple[Path, Path]) -> None:
    for margin in (0.005, 0.01, 0.05, 0.1):
        comparison = compare_folders(pair[0], [pair[1]], margin)
        for score in comparison.candidates[0].tasks:
            condition = parse_condition(f"recovery_lcb[{score.task}]<={1 - margin}")
            assert (decide(comparison, [condition]).verdict == "pass") == (score.verdict == "pass")


def test_figures_of_load_and_text(tmp_path: Path) -> None:
    base, other = write_bench(tmp_path / "base" / "b", 10.0), write_bench(tmp_path / "w4" / "b", 8.0)
    write_text_eval(base.parent / "e", 0.0)
    write_text_eval(other.parent / "e", 0.1)
    comparison = compare_folders(base.parent, [other.parent], 0.01)
    expected = {
        "p50_tpot_ms>8.1": "pass",
        "p50_tpot_ms>7.9": "fail",
        "p50_tpot_ms_ratio>0.9": "pass",
        "p50_tpot_ms_ratio_ucb>0.81": "fail",
        "failed>0": "pass",
        "output_token_throughput<100": "fail",
        "kl_mean>0.01": "fail",
        "ppl_ratio<1": "pass",
        "same_top_token<0.9": "pass",
    }
    assert {t: decide(comparison, [parse_condition(t)]).verdict for t in expected} == expected


def test_a_percentile_of_too_few_requests_leaves_the_gate_undecided(tmp_path: Path) -> None:
    base, other = write_bench(tmp_path / "base", 10.0, count=60), write_bench(tmp_path / "w4", 8.0, count=60)
    outcome = decide(compare_folders(base, [other], 0.01), [parse_condition("p99_tpot_ms>50")])
    assert (outcome.verdict, outcome.exit_code) == ("inconclusive", 3)


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("p99_tpot_ms>50", ComparisonError, "qdeploy bench"),
        ("kl_mean>0.1", ComparisonError, "qdeploy eval --text"),
        ("recovery[c]<1", UsageError, "It has a, b"),
        ("failed[a]>1", UsageError, "no brackets"),
    ],
)
def test_what_was_not_measured_is_bad_input_not_a_pass(
    pair: tuple[Path, Path], text: str, error: type[QDeployError], told: str
) -> None:
    with pytest.raises(error, match=told):
        decide(compare_folders(pair[0], [pair[1]], 0.01), [parse_condition(text)])


def test_exit_codes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, other = pair
    few = [write_eval(tmp_path / f"few{i}", answered("a", 100, range(20 + i))) for i in range(2)]
    assert run(base, base)[0] == 0
    assert run(base, other)[0] == 1
    assert run(base, tmp_path / "missing")[0] == 2
    assert run(base, other, "--fail-if", "nonsense")[0] == 2
    assert run(*few)[0] == 3
    assert run(*few, "--inconclusive", "pass")[0] == 0
    assert run(base, other, "--inconclusive", "pass")[0] == 1
    assert run(base, other, "--fail-if", "recovery<0.9")[0] == 0


def test_the_terminal_says_how_many_further_items_are_needed(tmp_path: Path) -> None:
    few = [write_eval(tmp_path / f"few{i}", answered("a", 100, range(20 + i))) for i in range(2)]
    code, text = run(*few)
    assert code == 3 and "further items needed" in text and "The gate is undecided." in text


def test_json_has_figures_and_checks(pair: tuple[Path, Path]) -> None:
    code, text = run(*pair, "--json")
    found = json.loads(text)
    assert (code, found["gate"]["exit_code"], found["gate"]["verdict"]) == (1, 1, "fail")
    [candidate] = found["comparison"]["candidates"]
    assert {task["task"] for task in candidate["tasks"]} == {"a", "b"}


def test_junit_has_a_case_a_check(pair: tuple[Path, Path], tmp_path: Path) -> None:
    conditions = ["--fail-if", "recovery<0.9", "--fail-if", "recovery_lcb[*]<0.99"]
    code, _ = run(*pair, pair[0], *conditions, "--junit", tmp_path / "gate.xml")
    assert code == 1
    suites = ElementTree.parse(tmp_path / "gate.xml").getroot().findall("testsuite")
    assert [(s.get("name"), s.get("tests"), s.get("failures")) for s in suites] == [
        ("w4", "3", "1"),
        ("base", "3", "0"),
    ]
    [failure] = suites[0].findall("testcase/failure")
    assert "recovery_lcb is 0.93" in (failure.get("message") or "")


@pytest.mark.parametrize(("option", "tag"), [("fail", "failure"), ("pass", "skipped")])
def test_junit_of_an_undecided_gate(tmp_path: Path, option: str, tag: str) -> None:
    few = [write_eval(tmp_path / f"few{i}", answered("a", 100, range(20 + i))) for i in range(2)]
    run(*few, "--inconclusive", option, "--junit", tmp_path / "gate.xml")
    assert len(ElementTree.parse(tmp_path / "gate.xml").getroot().findall(f".//{tag}")) == 1


def test_markdown_is_tables_that_every_cell_fits(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(*pair, "--markdown", tmp_path / "pr.md")
    text = (tmp_path / "pr.md").read_text()
    assert text.startswith("## Compared with base: the gate fails")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "0.99: fail<br>0.999: fail" in text and "0.99: pass<br>0.999: inconclusive" in text
    columns = {line.count("|") for line in rows}
    assert columns == {5, 8}


def test_an_invalid_load_run_opens_no_gate_and_closes_none(tmp_path: Path) -> None:
    """Its latency says something of the client or of a cache, not of the model."""
    base, candidate = write_bench(tmp_path / "base", 10.0), write_bench(tmp_path / "w4", 10.0)
    record = load_record(candidate)
    assert record.load
    record.load.interrupted = True
    record.save(candidate)
    condition = parse_condition("p99_tpot_ms>1000")
    assert decide(compare_folders(base, [candidate], 0.01), [condition]).verdict == "inconclusive"
    record.load.interrupted, record.load.invalid = (
        False,
        ["40% of the prompt tokens came from the prefix cache"],
    )
    record.save(candidate)
    comparison = compare_folders(base, [candidate], 0.01)
    for text in ("p99_tpot_ms>1000", "p99_tpot_ms>1", "failed>0"):
        outcome = decide(comparison, [parse_condition(text)])
        assert outcome.verdict == "inconclusive"
        assert "40% of the prompt tokens" in outcome.judged[0].checks[0].message
    assert any("40% of the prompt tokens" in note for note in comparison.candidates[0].notes)
