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
    """Make the checkpoint `output`, or go on with it."""
    with ShardWriter(output, KEYS) as writer:
        if writer.fingerprint is None:
            writer.set_fingerprint({"recipe": "abc"})
        for key in KEYS:
            if not writer.done(key):
                writer.add_shard(key, {f"{key}.weight": torch.ones(64)}, {"error": 0.5})
        writer.finish({"model_type": "llama"}, {"record": "m"}, source)


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished(folder: Path) -> dict[str, int]:
    """Shards with a record → inode, which writing one again changes."""
    keys = {path.stem for path in folder.glob("out.partial/.shards/*.json")}
    shards = {key: f"model-{i:05d}-of-{len(KEYS):05d}.safetensors" for i, key in enumerate(KEYS, 1)}
    contents = folder / "out.partial/contents"
    return {shards[key]: (contents / shards[key]).stat().st_ino for key in keys}


def test_whatever_change_it_is_killed_at_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source, whole = tmp_path / "source", tmp_path / "whole"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    assert run(write, source, whole).code == 0
    seen: set[int] = set()
    for change in count(1):
        folder = tmp_path / str(change)
        killed = run(write, source, folder / "out", at_change=change)
        if killed.code == 0:
            break
        assert killed.code == -signal.SIGKILL
        if (folder / "out").exists():
            remove_leftovers(folder / "out")
        else:
            kept = finished(folder)
            seen.add(len(kept))
            assert run(write, source, folder / "out").code == 0
            assert (
                kept.items() <= {path.name: path.stat().st_ino for path in (folder / "out").iterdir()}.items()
            )
        assert written(folder / "out") == written(whole)
        assert [path.name for path in folder.iterdir()] == ["out"]
    assert seen == {0, 1, 2, 3}
    assert change > 30
