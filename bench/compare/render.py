"""A comparison and its gate for a terminal, as Markdown for a pull request, and as JUnit XML."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as xml

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table as RichTable

from qdeploy.bench.compare.comparison import Comparison
from qdeploy.bench.compare.conditions import Check
from qdeploy.bench.compare.gate import Judged, Outcome
from qdeploy.bench.compare.tables import Table, floor_words, tables
from qdeploy.bench.records import Verdict

WORDS: dict[Verdict, str] = {"pass": "holds", "fail": "fails", "inconclusive": "is undecided"}
COLOURS: dict[Verdict, str] = {"pass": "green", "fail": "red", "inconclusive": "yellow"}


def terminal(comparison: Comparison, outcome: Outcome) -> RenderableType:
    """Tables for each candidate, then every check and the gate."""
    parts: list[RenderableType] = []
    for candidate in comparison.candidates:
        parts += [_rich(table) for table in tables(comparison, candidate)]
        parts += [f"[yellow]Note:[/] {escape(note)}" for note in candidate.notes]
    parts += map(escape, floor_words(comparison.noise))
    parts += [
        f"[{COLOURS[check.verdict]}]{check.verdict:<12}[/] {escape(f'{name}: {check.name}: {check.message}')}"
        for name, check in _checks(outcome)
    ]
    parts.append(f"[bold {COLOURS[outcome.verdict]}]The gate {WORDS[outcome.verdict]}.[/]")
    return Group(*parts)


def markdown(comparison: Comparison, outcome: Outcome) -> str:
    """The same for a pull request; Markdown as GitHub and GitLab read it."""
    lines = [f"## Compared with {_plain(comparison.baseline)}: the gate {WORDS[outcome.verdict]}", ""]
    lines += _grid(
        ("candidate", "check", "result", ""),
        [(name, check.name, f"**{check.verdict}**", check.message) for name, check in _checks(outcome)],
    )
    for candidate in comparison.candidates:
        for table in tables(comparison, candidate):
            lines += ["", f"### {_plain(table.title)}", "", *_grid(table.columns, table.rows)]
        lines += [line for note in candidate.notes for line in ("", f"Note: {_plain(note)}")]
    lines += [line for words in floor_words(comparison.noise) for line in ("", _plain(words))]
    return "\n".join(lines) + "\n"


def junit(outcome: Outcome) -> str:
    """A test suite a candidate, a test case a check; undecided ones fail, or are skipped if it opens."""
    root = xml.Element("testsuites", name="qdeploy compare")
    for judged in outcome.judged:
        _suite(root, judged, undecided="failure" if outcome.exit_code else "skipped")
    xml.indent(root)
    return xml.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: xml.Element, judged: Judged, undecided: str) -> None:
    tags: dict[Verdict, str | None] = {"pass": None, "fail": "failure", "inconclusive": undecided}
    found = [tags[check.verdict] for check in judged.checks]
    suite = xml.SubElement(root, "testsuite", name=judged.candidate, tests=str(len(found)), errors="0")
    suite.set("failures", str(found.count("failure")))
    suite.set("skipped", str(found.count("skipped")))
    for check, tag in zip(judged.checks, found, strict=True):
        case = xml.SubElement(suite, "testcase", classname=judged.candidate, name=check.name)
        if tag is None:
            xml.SubElement(case, "system-out").text = check.message
        else:
            xml.SubElement(case, tag, message=f"{check.verdict}: {check.message}")


def _checks(outcome: Outcome) -> Iterator[tuple[str, Check]]:
    for judged in outcome.judged:
        for check in judged.checks:
            yield judged.candidate, check


def _rich(table: Table) -> RichTable:
    grid = RichTable(title=escape(table.title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(table.columns):
        grid.add_column(escape(column), justify="right" if index else "left")
    for row in table.rows:
        grid.add_row(*map(escape, row))
    return grid


def _grid(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return ["| " + " | ".join(map(_plain, cells)) + " |" for cells in lines]


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
