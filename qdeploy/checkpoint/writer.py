"""Writing a checkpoint folder so that it is whole or not there, and so that a crash costs one shard.

All work happens in `OUT.partial`, a sibling of `OUT`:

    .lock               held with flock while a run writes; holds its process id
    .fingerprint.json   what the run depends on; a resumed run must have the same
    .shards/KEY.json    record of a finished shard: its size, hash, tensors and the caller's notes
    contents/           the checkpoint, its shards under their final names

Each file is flushed to disk, then renamed into its place, and a shard's record is written after the shard.
A shard that is found without a record is written again over itself. `finish` adds the index, configuration,
tokenizer, card and checksums, renames `contents` to `OUT` and removes the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors.torch import load_file
from torch import Tensor

from qdeploy.checkpoint.checksums import write_checksums
from qdeploy.checkpoint.companions import copy_companions
from qdeploy.checkpoint.folder import OutputFolder
from qdeploy.checkpoint.manifest import MANIFEST
from qdeploy.checkpoint.model_card import CARD
from qdeploy.checkpoint.tensor_file import begin_tensors, finish_tensors, room_for
from qdeploy.errors import disk_errors
from qdeploy.files import fsync_folder, link_file, read_json, write_json, write_text

INDEX = "model.safetensors.index.json"


class ShardWriter:
    """Writes one checkpoint folder, shard by shard; a context manager that holds the folder's lock.

    Args:
        output: the folder to make. May exist if empty.
        keys: the shards that make up the checkpoint, in order: letters, digits, dots, dashes, underscores.
        restart: throw away what an interrupted run left in `OUT.partial`.
        resumable: keep finished shards for a later run if this one does not finish.

    Raises:
        OutputError: `output` is not empty, another process is writing it, or the disk refuses.
    """

    def __init__(
        self, output: Path, keys: Sequence[str], *, restart: bool = False, resumable: bool = True
    ) -> None:
        self._folder, self._resumable = OutputFolder(output), resumable
        self.output, self.partial = self._folder.output, self._folder.partial
        self._files = {key: self._folder.contents / name for key, name in _names(keys).items()}
        self._fingerprint, self._records = self.partial / ".fingerprint.json", self.partial / ".shards"
        with disk_errors(self.partial):
            # Without a fingerprint nobody can tell what run the rest is of.
            if restart or not resumable or not self.recorded or self.fingerprint is None:
                self._folder.clear()
            self._remove_strays()
            self._records.mkdir(exist_ok=True)
            fsync_folder(self.partial)
        self._shards = self._read_records()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock; finished shards stay for a later run, and without any nothing stays."""
        if self._resumable and self.recorded:
            self._folder.close()
        else:
            self._folder.discard()

    @property
    def recorded(self) -> int:
        """How many finished shards `OUT.partial` holds, whatever run they are of."""
        return sum(1 for _ in self._records.glob("*.json"))

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """What the interrupted run in `OUT.partial` depended on, or None for a new one."""
        return dict(read_json(self._fingerprint)) if self._fingerprint.exists() else None

    def set_fingerprint(self, fingerprint: Mapping[str, Any]) -> None:
        """Record what this run depends on, before its first shard; any JSON."""
        write_json(self._fingerprint, dict(fingerprint))

    @property
    def bytes(self) -> int:
        """Size of the finished shards' files."""
        return sum(int(record["bytes"]) for record in self._shards.values())

    def done(self, key: str) -> bool:
        """Whether the shard is finished, in this run or the one that it resumes."""
        return key in self._shards

    def load(self, key: str) -> dict[str, Tensor]:
        """The tensors of a finished shard."""
        return load_file(self._files[key])

    def notes(self, key: str) -> dict[str, Any]:
        """The notes that were added with a finished shard."""
        return dict(self._shards[key]["notes"])

    def add_shard(
        self, key: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None
    ) -> None:
        """Write a shard; when this returns it survives a crash. Arguments and errors are `begin_shard`'s."""
        self.begin_shard(key, tensors.items(), room_for(tensors), notes)()

    def begin_shard(
        self,
        key: str,
        tensors: Iterable[tuple[str, Tensor]],
        room: int,
        notes: Mapping[str, Any] | None = None,
    ) -> Callable[[], None]:
        """Write a shard; what is returned takes no tensors, and when it returns the shard survives a crash.

        Args:
            key: one of the keys that the writer was made with.
            tensors: full name and tensor, of which none is kept to write another.
            room: bytes to leave for the file's header; see `begin_tensors`.
            notes: JSON that belongs to the shard, such as the errors of its layers.

        Raises:
            OutputError: the disk is full or read-only. Finished shards stay for a later run.
        """
        sizes = begin_tensors(self._files[key], tensors, room)
        return lambda: self._record(key, sizes, finish_tensors(self._files[key]), notes or {})

    def link_shard(self, key: str, file: Path, tensors: Mapping[str, int], sha256: str) -> None:
        """Take a weight file as it is: a hard link, or a copy where the file system allows none.

        The writer never writes into a file that has its final name, so the other folder keeps its bytes.

        Args:
            key: one of the keys that the writer was made with.
            file: the weight file.
            tensors: what it holds, name → bytes.
            sha256: of the file, in hexadecimal.

        Raises:
            OutputError: the disk is full or read-only.
        """
        with disk_errors(self._files[key]):
            link_file(file, self._files[key])
        self._record(key, tensors, sha256, {})

    def _record(self, key: str, tensors: Mapping[str, int], sha256: str, notes: Mapping[str, Any]) -> None:
        record = {
            "bytes": self._files[key].stat().st_size,
            "sha256": sha256,
            "tensors": dict(tensors),
            "notes": dict(notes),
        }
        write_json(self._records / f"{key}.json", record)
        self._shards[key] = record

    def finish(
        self,
        config: Mapping[str, Any],
        manifest: Mapping[str, Any] | None,
        source: Path,
        beside: Mapping[str, Mapping[str, Any]] | None = None,
        card: Callable[[Path], str] | None = None,
    ) -> None:
        """Complete the folder and rename it to `output`. Every shard must have been added.

        SHA256SUMS is written last, over all that is there.

        Args:
            config: config.json, with its quantization_config.
            manifest: qdeploy.json; the SHA-256 of every shard is added as "files". None for no such file.
            source: the checkpoint folder whose tokenizer, chat template, generation config and licence
                are copied.
            beside: more JSON files, by name.
            card: what makes README.md of the folder when all else is there. None for no such file.

        Raises:
            OutputError: the disk is full or read-only, or `output` came into use meanwhile. Every shard
                stays for a later run.
        """
        contents = self._folder.contents
        with disk_errors(self.output):
            copy_companions(source, contents)
            write_json(contents / "config.json", config)
            for name, content in (beside or {}).items():
                write_json(contents / name, content)
            if manifest is not None:
                write_json(contents / MANIFEST, {**manifest, "files": self._hashes()})
            write_json(contents / INDEX, self._index())
            if card is not None:
                write_text(contents / CARD, card(contents))
            write_checksums(contents, self._hashes())
        self._folder.publish()

    def _hashes(self) -> dict[str, str]:
        """Weight file → hex SHA-256."""
        return {file.name: self._shards[key]["sha256"] for key, file in self._files.items()}

    def _index(self) -> dict[str, Any]:
        sizes = {key: self._shards[key]["tensors"] for key in self._files}
        weight_map = {tensor: file.name for key, file in self._files.items() for tensor in sizes[key]}
        total = sum(sum(tensors.values()) for tensors in sizes.values())
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}

    def _remove_strays(self) -> None:
        """Remove all but shards: what `finish` writes again, and safetensors' own half files (.tmpXXXXXX)."""
        for path in self._folder.contents.rglob("*"):
            if path.is_file() and path.suffix != ".safetensors":
                path.unlink()

    def _read_records(self) -> dict[str, dict[str, Any]]:
        """Records whose shard is there in its full size."""
        paths = {key: self._records / f"{key}.json" for key in self._files}
        records = {key: read_json(path) for key, path in paths.items() if path.exists()}
        return {key: record for key, record in records.items() if _size(self._files[key]) == record["bytes"]}


def _names(keys: Sequence[str]) -> dict[str, str]:
    """Key → file name. The number of shards is known before the first, so that none is ever renamed."""
    wrong = [key for key in keys if not re.fullmatch(r"\w[\w.-]*", key)]
    if wrong:
        raise ValueError(f"not shard keys: {wrong}")
    return {key: f"model-{i:05d}-of-{len(keys):05d}.safetensors" for i, key in enumerate(keys, 1)}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
