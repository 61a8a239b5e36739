"""The catalogue: an index that many write at once, that folders can rebuild, and that stops no run."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qdeploy import catalogue
from qdeploy.catalogue.entry import Entry, read_entry
from qdeploy.catalogue.scan import scan
from qdeploy.catalogue.store import Catalogue, Filter
from qdeploy.cli.main import build
from qdeploy.errors import OutputError, UsageError
from qdeploy.files import write_json
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The catalogue of a test."""
    path = tmp_path / "home" / "runs.sqlite3"
    monkeypatch.setenv("QDEPLOY_CATALOGUE", str(path))
    return path


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder as `qdeploy verify` leaves one."""

    def make(name: str, kind: str = "verify", model: str = "m", created: str = "2026-01-02") -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        record = {
            "record": "qdeploy-run",
            "kind": kind,
            "engine": {"model": model},
            "provenance": {"created": f"{created}T00:00:00+00:00", "command": f"qdeploy {kind} {name}"},
            "verify": {"verdict": "pass", "ratio": 1.0},
        }
        write_json(folder / "run.json", record)
        return folder

    return make


def names(**wanted: object) -> list[str]:
    with Catalogue() as open_catalogue:
        return [entry.name for entry in open_catalogue.find(Filter(**wanted))]  # type: ignore[arg-type]


def qdeploy(*arguments: str | Path) -> str:
    """What the command prints."""
    result = CliRunner().invoke(build(), ["runs", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_runs_are_found_by_what_they_are(make_run: Callable[..., Path]) -> None:
    for folder in (
        make_run("old", created="2025-01-01"),
        make_run("new", kind="eval", model="SmolLM2"),
        make_run("other", kind="eval"),
    ):
        catalogue.record(folder)
    assert names() == ["new", "other", "old"]
    assert names(kind="eval") == ["new", "other"]
    assert names(model="smollm") == ["new"]
    assert names(since="2025-06-01T00:00:00+00:00") == ["new", "other"]
    assert names(kind="eval", tags=["good"]) == []


def test_a_quantized_checkpoint_enters_itself(tiny_llama: Path, tmp_path: Path) -> None:
    quantize(Recipe.from_flags(str(tiny_llama), scheme="W8A8", method="rtn"), tmp_path / "w8")
    with Catalogue() as open_catalogue:
        [entry] = open_catalogue.find()
    assert (entry.kind, entry.path, entry.model) == ("quantize", tmp_path / "w8", tiny_llama.name)
    assert "by rtn" in entry.summary


def test_a_run_is_entered_once_however_often_it_is_made(make_run: Callable[..., Path]) -> None:
    folder = make_run("again")
    catalogue.record(folder)
    catalogue.record(folder)
    assert names() == ["again"]


def test_several_processes_write_at_once(make_run: Callable[..., Path]) -> None:
    """From a file that is not there yet: one of them makes the tables."""
    parts = [[make_run(f"{process}-{i}") for i in range(10)] for process in range(4)]
    code = "import pathlib, sys; from qdeploy import catalogue; "
    code += "[catalogue.record(pathlib.Path(folder)) for folder in sys.argv[1:]]"
    processes = [subprocess.Popen([sys.executable, "-c", code, *map(str, part)]) for part in parts]
    assert [process.wait() for process in processes] == [0] * 4
    assert sorted(names()) == sorted(folder.name for part in parts for folder in part)


def test_who_finds_another_writing_waits_and_then_sees_what_it_wrote(
    make_run: Callable[..., Path], file: Path
) -> None:
    [entry] = filter(None, [read_entry(make_run("mine"))])
    with Catalogue() as open_catalogue:
        other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO runs VALUES ('/theirs', 'i', 'eval', 'theirs', 'm', '2026-01-01', '')")
        ending = threading.Timer(0.2, lambda: other.execute("COMMIT"))
        ending.start()
        open_catalogue.add([entry])
        ending.join()
        other.close()
    assert names() == ["mine", "theirs"]


def test_the_catalogue_is_rebuilt_from_folders_with_their_tags(
    make_run: Callable[..., Path], tmp_path: Path, file: Path
) -> None:
    catalogue.record(make_run("a"))
    make_run("b").rename(tmp_path / "runs" / "b.partial")
    qdeploy("tag", "a", "+good", "+final")
    assert qdeploy("tag", "a", "-final", "+best").endswith(": best, good\n")
    with Catalogue() as open_catalogue:
        before = open_catalogue.find()
    file.unlink()
    assert qdeploy("scan", tmp_path).startswith("1 runs entered")
    with Catalogue() as open_catalogue:
        assert open_catalogue.find() == before
    assert before[0].tags == ("best", "good")
    assert names(tags=["good", "best"]) == ["a"]


def test_folders_that_moved_or_vanished_are_told_and_pruned(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    moved, gone = make_run("moved"), make_run("gone", created="2026-02-02")
    for folder in (moved, gone):
        catalogue.record(folder)
    moved.rename(tmp_path / "elsewhere")
    shutil.rmtree(gone)
    found = json.loads(qdeploy("--json"))
    assert [entry["is_there"] for entry in found] == [False, False]
    assert qdeploy().count("not there any more") == 2
    assert qdeploy("--paths") == ""
    qdeploy("scan", tmp_path)
    assert qdeploy("--paths") == f"{tmp_path / 'elsewhere'}\n"
    assert names() == ["gone", "elsewhere"], "what has moved keeps one entry"
    assert str(gone) in qdeploy("prune")
    assert names() == ["elsewhere"]


def test_one_run_is_shown_by_id_path_or_name(make_run: Callable[..., Path]) -> None:
    folder = make_run("one")
    catalogue.record(folder)
    [entry] = filter(None, [read_entry(folder)])
    for name in (entry.short, str(folder), "one"):
        shown = json.loads(qdeploy("show", name, "--json"))
        assert shown["path"] == str(folder)
        assert shown["record"]["verify"] == {"verdict": "pass", "ratio": 1.0}
    assert "qdeploy verify one" in qdeploy("show", "one")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "non"], "No run 'non' in .* Did you mean one"),
        (["show", "two"], "'two' is 2 runs"),
        (["--kind", "evel"], "Unknown kind 'evel'. Did you mean 'eval'"),
        (["--since", "soon"], "'soon' is neither a date"),
        (["--since", "99999999w"], "'99999999w' is neither a date"),
        (["tag", "one", ""], "'' is no change of tags"),
        (["tag", "one", "good"], r"'good' is no change of tags: write \+TAG"),
        (["scan", "/no/such/folder"], "/no/such/folder is no folder"),
    ],
)
def test_what_cannot_be_found_is_said(
    make_run: Callable[..., Path], arguments: list[str], message: str
) -> None:
    for name in ("one", "a/two", "b/two"):
        catalogue.record(make_run(name))
    with pytest.raises(UsageError, match=message):
        qdeploy(*arguments)


def test_a_catalogue_that_cannot_be_written_stops_no_run(
    make_run: Callable[..., Path], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.parent.mkdir()
    file.write_text("a text, and no database at all; long enough for SQLite to look at its beginning" * 9)
    catalogue.record(make_run("run"))
    said = capsys.readouterr().err.replace("\n", " ")
    assert "run is whole, but is not in the catalogue" in said and "file is not a database" in said
    with pytest.raises(OutputError, match=r"cannot be used: file is not a database.*QDEPLOY_CATALOGUE"):
        qdeploy("list")
    file.unlink()
    file.mkdir()
    catalogue.record(make_run("another"))
    assert "unable to open database file" in capsys.readouterr().err.replace("\n", " ")


def test_a_catalogue_that_breaks_while_it_is_open_is_told(make_run: Callable[..., Path], file: Path) -> None:
    catalogue.record(make_run("run"))
    with (
        pytest.raises(OutputError, match="cannot be used: no such table"),
        Catalogue() as open_catalogue,
        sqlite3.connect(file) as other,
    ):
        other.execute("DROP TABLE tags")
        open_catalogue.find()


def test_what_is_there_only_while_a_run_is_made_does_not_enter(make_run: Callable[..., Path]) -> None:
    for ending in (".partial", ".staged", ".reference", ".converted"):
        catalogue.record(make_run(f"out{ending}"))
    assert names() == []


def test_a_newer_catalogue_is_left_alone(file: Path, make_run: Callable[..., Path]) -> None:
    catalogue.record(make_run("run"))
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(UsageError, match="of schema 2; this qdeploy knows 1"):
        Catalogue()


def test_broken_records_are_told_and_left_out(
    make_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("torn", '{"kind": "ev'), ("list", "[1]"), ("foreign", "{}")):
        (make_run(name) / "run.json").write_text(content)
    make_run("good")
    with Catalogue() as open_catalogue:
        assert scan(open_catalogue, tmp_path) == 1
    assert names() == ["good"]
    assert capsys.readouterr().err.count("is left out") == 3


def test_every_kind_has_its_figures(make_run: Callable[..., Path]) -> None:
    def of(folder: Path, file: str, **content: object) -> Entry:
        write_json(folder / file, content)
        [entry] = filter(None, [read_entry(folder)])
        return entry

    engine = {"engine": {"model": "m"}}
    load = {"rate": 0.5, "output_token_throughput": 16.123, "invalid": ["a reason"]}
    assert of(make_run("b"), "run.json", kind="bench", load=load, **engine).summary == (
        "0.5/s, 16.1 tokens/s, invalid"
    )
    replayed = {"rate": None, "achieved_rate": 1.25, "output_token_throughput": 8.0}
    assert of(make_run("t"), "run.json", kind="bench", load=replayed, **engine).summary == (
        "1.25/s, 8 tokens/s"
    )
    tasks = [{"task": "smoke", "accuracy": {"value": 0.5}, "verdict": "pass"}]
    assert of(make_run("e"), "run.json", kind="eval", tasks=tasks, **engine).summary == "smoke 50.0% pass"
    export = {"scheme": "W4A16", "engine": "vllm", "target": "h100", "source": "/models/big"}
    folder = make_run("x")
    (folder / "run.json").unlink()
    entry = of(folder, "export.json", **export)
    assert (entry.kind, entry.model, entry.summary) == ("export", "big", "W4A16, for vllm on h100")
    variants = [{"name": "w4", "steps": {"load": {"status": "done"}, "eval": {"status": "failed"}}}]
    write_json(folder / "decision.json", {"recommended": "w4"})
    entry = of(folder, "campaign.json", plan={"model": "models/big"}, variants=variants)
    assert (entry.kind, entry.model) == ("campaign", "big")
    assert entry.summary == "w4, 1 of 2 steps done, recommended w4"
