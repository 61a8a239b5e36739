"""A writer that is killed before each of its changes to the file system, one after the other."""

from __future__ import annotations

import signal
from itertools import count
from pathlib import Path

import torch

from qdeploy.checkpoint.folder import remove_leftovers
from qdeploy.checkpoint.writer import ShardWriter
from tests.killing import run

KEYS = ["rest", "block-0", "block-1"]


def write(source: Path, output: Path) -> None:
    """Make the checkpoint `output`, or go on with it; the shards that are finished go to `output`.log."""
    with ShardWriter(output, KEYS) as writer:
        if writer.fingerprint is None:
            writer.set_fingerprint({"recipe": "abc"})
        for key in KEYS:
            if not writer.done(key):
                writer.add_shard(key, {f"{key}.weight": torch.ones(64)}, {"error": 0.5})
                with output.with_suffix(".log").open("a") as log:
                    print(key, file=log)
        writer.finish({"model_type": "llama"}, {"record": "m"}, source)


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_whatever_change_it_is_killed_at_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source, whole = tmp_path / "source", tmp_path / "whole"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    assert run(write, source, whole).code == 0
    for change in count(1):
        folder = tmp_path / str(change)
        killed = run(write, source, folder / "out", at_change=change)
        if killed.code == 0:
            break
        assert killed.code == -signal.SIGKILL
        if (folder / "out").exists():
            remove_leftovers(folder / "out")
        else:
            assert run(write, source, folder / "out").code == 0
        added = (folder / "out.log").read_text().split()
        assert len(added) == len(set(added))
        assert written(folder / "out") == written(whole)
        assert {path.name for path in folder.iterdir()} == {"out", "out.log"}
    assert change > 30
