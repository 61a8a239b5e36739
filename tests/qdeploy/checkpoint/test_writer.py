"""Checkpoint folders: whole or not there, resumable, one writer at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qdeploy.checkpoint.writer import ShardWriter
from qdeploy.errors import OutputError
from qdeploy.files import read_json, sha256_file
from qdeploy.modeling.checkpoint import CheckpointReader


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint folder with something of everything."""
    folder = tmp_path / "source"
    for name in (
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "training_args.pt",
        "modeling_custom.py",
        ".gitattributes",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "generation_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "LICENSE",
        "original/params.json",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_finish_makes_a_checkpoint_that_reads_back(tmp_path: Path, source: Path) -> None:
    output, x, y = tmp_path / "out", torch.randn(3, 4), torch.arange(5)
    with ShardWriter(output, ["embed", "block-0"]) as writer:
        writer.add_shard("embed", {"x": x})
        writer.add_shard("block-0", {"y": y})
        assert not output.exists()
        writer.finish({"model_type": "llama"}, {"record": "m"}, source)
    reader = CheckpointReader(output)
    assert torch.equal(reader.get("x"), x) and torch.equal(reader.get("y"), y)
    assert reader.config == {"model_type": "llama"}
    hashes = {file.name: sha256_file(file) for file in reader.files}
    assert read_json(output / "qdeploy.json") == {"record": "m", "files": hashes}
    assert read_json(output / "model.safetensors.index.json") == {
        "metadata": {"total_size": x.nbytes + y.nbytes},
        "weight_map": {
            "x": "model-00001-of-00002.safetensors",
            "y": "model-00002-of-00002.safetensors",
        },
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("out")] == ["out"]


def test_others_can_read_the_weights(tmp_path: Path, source: Path) -> None:
    with ShardWriter(tmp_path / "out", ["all"]) as writer:
        writer.add_shard("all", {"x": torch.ones(1)})
        writer.finish({}, {}, source)
    files = ("config.json", "model-00001-of-00001.safetensors")
    config, weights = ((tmp_path / "out" / name).stat().st_mode for name in files)
    assert weights == config


def test_a_weight_file_is_taken_as_it_is(tmp_path: Path, source: Path) -> None:
    file, output = tmp_path / "kept.safetensors", tmp_path / "out"
    save_file({"x": torch.ones(2), "y": torch.ones(3)}, file)
    digest = sha256_file(file)
    with ShardWriter(output, ["kept", "made"]) as writer:
        # What a killed run may leave without a record: here a link too, which must not be written through.
        os.link(file, tmp_path / "out.partial/contents/model-00002-of-00002.safetensors")
        writer.link_shard("kept", file, {"x": 8, "y": 12}, digest)
        writer.add_shard("made", {"z": torch.zeros(4)})
        writer.finish({}, {}, source)
    assert sha256_file(file) == digest
    assert (output / "model-00001-of-00002.safetensors").samefile(file)
    assert sorted(CheckpointReader(output).names) == ["x", "y", "z"]
    assert read_json(output / "model.safetensors.index.json")["metadata"]["total_size"] == 36
    assert read_json(output / "qdeploy.json")["files"]["model-00001-of-00002.safetensors"] == digest


def test_card_and_checksums_cover_the_finished_folder(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    with ShardWriter(output, ["all"]) as writer:
        writer.add_shard("all", {"x": torch.ones(1)})
        writer.finish({}, {}, source, card=lambda folder: " ".join(CheckpointReader(folder).names))
    assert (output / "README.md").read_text() == "x"
    listed = [line.split("  ")[1] for line in (output / "SHA256SUMS").read_text().splitlines()]
    there = [str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()]
    assert sorted([*listed, "SHA256SUMS"]) == sorted(there)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=output, check=True)


def test_a_run_that_cannot_be_resumed_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="no luck"),
        ShardWriter(tmp_path / "out", ["a", "b"], resumable=False) as writer,
    ):
        writer.add_shard("a", {"x": torch.ones(1)})
        raise OutputError("no luck")
    assert list(tmp_path.iterdir()) == []


def test_finish_copies_the_tokenizer_and_no_code_pickles_or_weights(tmp_path: Path, source: Path) -> None:
    output = tmp_path / "out"
    with ShardWriter(output, ["all"]) as writer:
        writer.add_shard("all", {"x": torch.ones(1)})
        writer.finish({}, {}, source)
    made = {
        "config.json",
        "qdeploy.json",
        "model.safetensors.index.json",
        "model-00001-of-00001.safetensors",
        "SHA256SUMS",
    }
    copied = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()} - made
    assert copied == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "generation_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "LICENSE",
    }
    assert read_json(output / "config.json") == {}


def test_a_later_run_finds_what_an_interrupted_one_finished(tmp_path: Path, source: Path) -> None:
    output, x = tmp_path / "out", torch.randn(3)
    keys = ["block-0", "block-1"]
    with ShardWriter(output, keys) as writer:
        assert writer.fingerprint is None
        writer.set_fingerprint({"recipe": "abc"})
        writer.add_shard("block-0", {"x": x}, {"error": 0.5})
    with ShardWriter(output, keys) as writer:
        assert writer.fingerprint == {"recipe": "abc"}
        assert writer.done("block-0") and not writer.done("block-1")
        assert torch.equal(writer.load("block-0")["x"], x)
        assert writer.notes("block-0") == {"error": 0.5}
        writer.add_shard("block-1", {"y": x})
        writer.finish({}, {}, source)
    assert set(CheckpointReader(output).names) == {"x", "y"}


def test_a_damaged_or_unrecorded_shard_is_redone_in_its_place(tmp_path: Path, source: Path) -> None:
    output, keys, contents = tmp_path / "out", ["a", "b", "c"], tmp_path / "out.partial/contents"
    with ShardWriter(output, keys) as writer:
        writer.set_fingerprint({})
        for key in keys:
            writer.add_shard(key, {key: torch.ones(64)})
    with (contents / "model-00001-of-00003.safetensors").open("r+b") as file:
        file.truncate(100)
    (tmp_path / "out.partial/.shards/c.json").unlink()
    for stray in ("model-00003-of-00003.safetensors.tmp", ".tmpEL2UDL", "NOTICE"):
        (contents / stray).write_bytes(b"half")
    with ShardWriter(output, keys) as writer:
        assert [writer.done(key) for key in keys] == [False, True, False]
        for key in ("a", "c"):
            writer.add_shard(key, {key: torch.zeros(64)})
        writer.finish({}, {}, source)
    assert sorted(CheckpointReader(output).names) == ["a", "b", "c"]
    assert len(list(output.glob("*.safetensors*"))) == 4
    assert not {".tmpEL2UDL", "NOTICE"} & {path.name for path in output.iterdir()}


def test_shards_of_another_model_are_kept_until_restart(tmp_path: Path) -> None:
    output, shard = tmp_path / "out", tmp_path / "out.partial/contents/model-00001-of-00002.safetensors"
    with ShardWriter(output, ["a", "b"]) as writer:
        writer.set_fingerprint({"model": "abc"})
        writer.add_shard("a", {"x": torch.ones(1)})
    with ShardWriter(output, ["c"]) as writer:
        assert writer.fingerprint == {"model": "abc"}
        assert not writer.done("c")
        assert writer.recorded == 1
    assert shard.exists()
    with ShardWriter(output, ["a", "b"], restart=True) as writer:
        assert writer.fingerprint is None
        assert not writer.done("a")
    assert list(tmp_path.iterdir()) == []


def test_shards_of_nobody_knows_what_are_removed(tmp_path: Path) -> None:
    """What a kill while clearing leaves: the fingerprint goes first."""
    with ShardWriter(tmp_path / "out", ["a"]) as writer:
        writer.set_fingerprint({"recipe": "abc"})
        writer.add_shard("a", {"x": torch.ones(1)})
    (tmp_path / "out.partial/.fingerprint.json").unlink()
    with ShardWriter(tmp_path / "out", ["a"]) as writer:
        assert not writer.done("a")


def test_refuses_to_work_in_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"out\.partial .* holds other files\. Move it away"):
        ShardWriter(tmp_path / "out", ["a"], restart=True)
    assert (tmp_path / "out.partial/thesis.tex").exists()


def test_refuses_an_output_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ShardWriter(tmp_path / "out", []).close()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"Output folder in use: .*/out is not empty.* -o"):
        ShardWriter(tmp_path / "out", [])
    assert (tmp_path / "out/thesis.tex").exists()


def test_refuses_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(OutputError, match=r"Output folder in use: .*/out is a file"):
        ShardWriter(tmp_path / "out", [])


def test_two_runs_cannot_write_the_same_output(tmp_path: Path) -> None:
    with (
        ShardWriter(tmp_path / "out", []),
        pytest.raises(OutputError, match=f"process {os.getpid()} is writing"),
    ):
        ShardWriter(tmp_path / "out", [])
    ShardWriter(tmp_path / "out", []).close()


def test_a_killed_run_leaves_no_lock_and_keeps_its_shards(tmp_path: Path) -> None:
    program = (
        "import sys, os, signal, torch; from pathlib import Path\n"
        "from qdeploy.checkpoint.writer import ShardWriter\n"
        "writer = ShardWriter(Path(sys.argv[1]), ['a']); writer.set_fingerprint({})\n"
        "writer.add_shard('a', {'x': torch.ones(3)})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=False)
    assert done.returncode == -signal.SIGKILL
    with ShardWriter(tmp_path / "out", ["a"]) as writer:
        assert writer.done("a")
    assert not (tmp_path / "out").exists()


def fill_disk_for(path: Path) -> None:
    """Make the next atomic write of `path` meet the kernel's own "No space left on device"."""
    path.with_name(path.name + ".tmp").symlink_to("/dev/full")


def test_a_disk_that_fills_during_a_shard_leaves_the_finished_ones(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "out", ["a", "b"]) as writer:
        writer.set_fingerprint({})
        writer.add_shard("a", {"x": torch.ones(3)})
        fill_disk_for(tmp_path / "out.partial/contents/model-00002-of-00002.safetensors")
        with pytest.raises(
            OutputError, match=r"Cannot write .*model-00002-of-00002\.safetensors: the disk is full"
        ):
            writer.add_shard("b", {"y": torch.ones(3)})
    assert not (tmp_path / "out").exists()
    with ShardWriter(tmp_path / "out", ["a", "b"]) as writer:
        assert writer.done("a") and not writer.done("b")


def test_a_disk_that_fills_at_the_end_leaves_every_shard(tmp_path: Path, source: Path) -> None:
    output, contents = tmp_path / "out", tmp_path / "out.partial/contents"
    with ShardWriter(output, ["a"]) as writer:
        writer.set_fingerprint({})
        writer.add_shard("a", {"x": torch.ones(3)})
        for file in ("config.json", "qdeploy.json", "model.safetensors.index.json"):
            fill_disk_for(contents / file)
            with pytest.raises(OutputError, match="the disk is full"):
                writer.finish({}, {}, source)
            (contents / f"{file}.tmp").unlink()
            assert not output.exists()
    with ShardWriter(output, ["a"]) as writer:
        assert writer.done("a")
        writer.finish({}, {}, source)
    assert CheckpointReader(output).names == ["x"]


def test_refuses_a_mount_point() -> None:
    # What an empty volume of a container is.
    mount = next((path for path in (Path("/dev/shm"), Path("/dev/mqueue")) if is_empty_mount(path)), None)
    if mount is None:
        pytest.skip("no empty mount point on this machine")
    with pytest.raises(OutputError, match=f"{mount} is a mount point.*-o {mount}/model"):
        ShardWriter(mount, [])


def is_empty_mount(path: Path) -> bool:
    return path.is_mount() and not any(path.iterdir())


def test_a_run_that_fails_before_its_first_shard_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no luck"), ShardWriter(tmp_path / "out", ["a"]) as writer:
        writer.set_fingerprint({"recipe": "a"})
        raise OutputError("no luck")
    assert list(tmp_path.iterdir()) == []
