"""`qdeploy quantize` that is stopped and given again: nothing is lost, and the same bytes come out."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdeploy import pipeline, stack
from qdeploy.errors import OutputError
from qdeploy.modeling.checkpoint import SINGLE
from qdeploy.pipeline import quantize
from qdeploy.recipe import Recipe
from tests.conftest import save_tiny
from tests.killing import Ended, run

KILLS = 20
BLOCKS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", num_hidden_layers=BLOCKS)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A calibration text in a file of its own."""
    file = tmp_path / "text.txt"
    file.write_text("All happy families are alike. " * 20)
    return file


def command(model: Path, text: Path, output: Path) -> list[str]:
    shape = ["--group-size", "auto", "--samples", "4", "--sequence-length", "64"]
    return ["quantize", str(model), *shape, "--calibration", str(text), "-o", str(output)]


def qdeploy(arguments: list[str], log: Path) -> None:
    """What `python -m qdeploy` does.

    The names of the blocks that it begins to quantize go to `log`, its messages to `log`.err.
    """
    from qdeploy.cli.main import main

    begin = stack.quantize_with_data

    def noted(call: Any, *rest: Any, **options: Any) -> Any:
        with log.open("a") as file:
            print(call.block.name, file=file)
        return begin(call, *rest, **options)

    stack.quantize_with_data = noted
    sys.stdout = sys.stderr = log.with_suffix(".err").open("w")
    torch.set_num_threads(1)
    sys.argv = ["qdeploy", *arguments]
    main()


def begun(log: Path) -> set[str]:
    """The blocks in a log, which is removed."""
    blocks = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return set(blocks)


def comparable(folder: Path) -> dict[str, Any]:
    """Every file's bytes; qdeploy.json without what the documentation says that tells of the run itself."""
    files: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    manifest = json.loads(files["qdeploy.json"])
    del manifest["provenance"]["created"]
    for part in ("seconds", "split", "peak_rss_bytes"):
        del manifest["totals"][part]
    for module in manifest["modules"]:
        del module["seconds"]
    sums = [line for line in files["SHA256SUMS"].splitlines() if not line.endswith(b"  qdeploy.json")]
    return files | {"qdeploy.json": json.dumps(manifest), "SHA256SUMS": sums}


def test_killed_twenty_times_it_redoes_one_block_at_most_and_ends_in_the_same_bytes(
    model: Path, text: Path, tmp_path: Path
) -> None:
    output, log, chance = tmp_path / "out", tmp_path / "log", random.Random(0)
    whole = run(qdeploy, command(model, text, output), log)
    assert whole.code == 0
    assert len(begun(log)) == BLOCKS
    expected = comparable(output.rename(tmp_path / "whole"))

    kills, before = 0, set[str]()
    while True:
        moment = some_moment(whole, chance) if kills < KILLS else {}
        ended = run(qdeploy, command(model, text, output), log, **moment)
        blocks = begun(log)
        assert len(blocks & before) <= 1
        before |= blocks
        if ended.code != 0:
            assert ended.code == -signal.SIGKILL
            kills += 1
            continue
        assert comparable(output) == expected
        assert not output.with_name("out.partial").exists()
        if kills == KILLS:
            break
        shutil.rmtree(output)
        before.clear()


def some_moment(whole: Ended, chance: random.Random) -> dict[str, Any]:
    """By the clock most moments fall in the quantizing of a block, by changes in the writing of files."""
    if chance.random() < 0.5:
        return {"after": chance.uniform(0, whole.seconds)}
    return {"at_change": chance.randint(1, whole.changes)}


def test_after_ctrl_c_it_says_how_to_go_on_and_does(model: Path, text: Path, tmp_path: Path) -> None:
    output, log = tmp_path / "out", tmp_path / "log"
    whole = run(qdeploy, command(model, text, output), log)
    expected = comparable(output.rename(tmp_path / "whole"))
    for share in (0.2, 0.5, 0.8, 0.95):
        change = round(share * whole.changes)
        ended = run(qdeploy, command(model, text, output), log, at_change=change, number=signal.SIGINT)
        assert ended.code == 130
        said = log.with_suffix(".err").read_text()
        assert re.search(r"Error: Interrupted after \d of 4 blocks.* The same command (goes on|begins)", said)
        assert "Traceback" not in said
        assert run(qdeploy, command(model, text, output), log).code == 0
        assert comparable(output) == expected
        shutil.rmtree(output)


def test_two_fresh_processes_make_the_same_bytes(model: Path, text: Path, tmp_path: Path) -> None:
    """Of one seed on as many threads; strings hash differently in each."""
    processes = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "qdeploy", *command(model, text, Path("out"))],
                cwd=tmp_path / seed,
                env=os.environ | {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": seed},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    assert [process.wait() for process in processes] == [0, 0]
    assert comparable(tmp_path / "1/out") == comparable(tmp_path / "2/out")


def recipe(model: Path, text: Path, **flags: Any) -> Recipe:
    calibration = {"source": str(text), "samples": 2, "sequence_length": 32}
    return Recipe.from_flags(str(model), **({"group_size": "32", "calibration": calibration} | flags))


@pytest.fixture
def stopped(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A run with its own copies of model and text, stopped in its second block; called, it goes on."""
    folder = shutil.copytree(model, tmp_path / "model")

    def go(**changes: Any) -> None:
        quantize(recipe(folder, text, **changes), tmp_path / "out")

    begin = stack.quantize_with_data

    def stop(call: Any, *rest: Any, **options: Any) -> Any:
        if call.block.name.endswith(".1"):
            raise OutputError("no room")
        return begin(call, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stack, "quantize_with_data", stop)
        with pytest.raises(OutputError, match="no room"):
            go()
    return go


def test_another_recipe_is_told_field_by_field(stopped: Callable[..., None]) -> None:
    told = (
        r"out\.partial holds 2 shards of an interrupted run, and this one differs: "
        r"rules\.0\.scheme\.group: 32 → 64; rules\.0\.scheme\.symmetric: true → false\. .*--restart"
    )
    with pytest.raises(OutputError, match=told):
        stopped(group_size="64", symmetric=False)
    stopped()


def test_another_model_at_the_same_place_is_told(stopped: Callable[..., None], tmp_path: Path) -> None:
    tensors = load_file(tmp_path / "model" / SINGLE)
    tensors["model.norm.weight"] += 1
    save_file(tensors, tmp_path / "model" / SINGLE)
    with pytest.raises(
        OutputError, match=r"differs: the content of the model .*/model \(SHA-256 \w+ → \w+\)"
    ):
        stopped()


def test_another_text_at_the_same_place_is_told(stopped: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Every unhappy family is unhappy in its own way. " * 20)
    with pytest.raises(OutputError, match=r"differs: the calibration tokens \(SHA-256 \w+ → \w+\)\. "):
        stopped()


def test_another_version_is_told(stopped: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "__version__", "9.9")
    with pytest.raises(OutputError, match=r"differs: qdeploy: [\d.]+ → 9\.9\. "):
        stopped()


def test_given_again_when_finished_it_changes_nothing(model: Path, text: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = quantize(recipe(model, text), output)
    (tmp_path / "out.partial/.shards").mkdir(parents=True)  # as of a process killed while it cleared up
    (tmp_path / "out.partial/.lock").touch()
    times = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert quantize(recipe(model, text), output) == first
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == times
    assert not (tmp_path / "out.partial").exists()
    with pytest.raises(OutputError, match="out is not empty"):
        quantize(recipe(model, text, group_size="64"), output)
    text.write_text("Every unhappy family is unhappy in its own way. " * 20)
    with pytest.raises(OutputError, match="out is not empty"):
        quantize(recipe(model, text), output)
