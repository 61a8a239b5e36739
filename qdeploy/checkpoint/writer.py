"""Writing a checkpoint folder so that it is whole or not there, and so that a crash costs one shard.

All work happens in `OUT.partial`, a sibling of `OUT`:

    .lock               held with flock while a run writes; holds its process id
    .fingerprint.json   what the run depends on; a resumed run must have the same
    .shards/KEY.json    record of a finished shard: its size, tensors and the caller's notes
    KEY.safetensors     the shard

`finish` gives the shards their final names, adds the index, configuration and tokenizer, and renames the
folder to `OUT`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors.torch import load_file
from torch import Tensor

from qdeploy.checkpoint.companions import copy_companions
from qdeploy.checkpoint.folder import OutputFolder
from qdeploy.checkpoint.tensor_file import write_tensors
from qdeploy.errors import disk_errors
from qdeploy.files import read_json, sha256_file, write_json

INDEX = "model.safetensors.index.json"


class ShardWriter:
    """Writes one checkpoint folder, shard by shard; a context manager that holds the folder's lock.

    Args:
        output: the folder to make. May exist if empty.
        restart: throw away what an interrupted run left in `OUT.partial`.

    Raises:
        OutputError: `output` is not empty, another process is writing it, or the disk refuses.
    """

    def __init__(self, output: Path, *, restart: bool = False) -> None:
        self._folder = OutputFolder(output)
        self.output, self.partial = self._folder.output, self._folder.partial
        if restart:
            self._folder.clear()
        self._records = self.partial / ".shards"
        with disk_errors(self.partial):
            self._records.mkdir(exist_ok=True)
        self._shards = self._read_records()
        self._remove_strays()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock; finished shards stay for a later run, and without any nothing stays."""
        if self._shards:
            self._folder.close()
        else:
            self._folder.discard()

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """What the interrupted run in `OUT.partial` depended on, or None for a new one."""
        path = self.partial / ".fingerprint.json"
        return dict(read_json(path)) if path.exists() else None

    def set_fingerprint(self, fingerprint: Mapping[str, Any]) -> None:
        """Record what this run depends on; any JSON."""
        write_json(self.partial / ".fingerprint.json", dict(fingerprint))

    @property
    def keys(self) -> list[str]:
        """Finished shards in the order in which they were added."""
        return list(self._shards)

    def done(self, key: str) -> bool:
        """Whether the shard is finished, in this run or the one that it resumes."""
        return key in self._shards

    def load(self, key: str) -> dict[str, Tensor]:
        """The tensors of a finished shard."""
        return load_file(self._file(key))

    def notes(self, key: str) -> dict[str, Any]:
        """The notes that were added with a finished shard."""
        return dict(self._shards[key]["notes"])

    def add_shard(
        self, key: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None
    ) -> None:
        """Write a shard; when this returns it survives a crash.

        Args:
            key: letters, digits, dots, dashes and underscores.
            tensors: full tensor name → contiguous tensor.
            notes: JSON that belongs to the shard, such as the errors of its layers.

        Raises:
            OutputError: the disk is full or read-only. Finished shards stay for a later run.
        """
        if not re.fullmatch(r"\w[\w.-]*", key):
            raise ValueError(f"not a shard key: {key!r}")
        write_tensors(self._file(key), tensors)
        record = {
            "position": self._shards[key]["position"] if key in self._shards else len(self._shards),
            "bytes": self._file(key).stat().st_size,
            "tensors": {name: tensor.nbytes for name, tensor in tensors.items()},
            "notes": dict(notes or {}),
        }
        write_json(self._records / f"{key}.json", record)
        self._shards[key] = record

    def finish(self, config: Mapping[str, Any], manifest: Mapping[str, Any], source: Path) -> None:
        """Complete the folder and rename it to `output`.

        Args:
            config: config.json, with its quantization_config.
            manifest: qdeploy.json; the SHA-256 of every shard is added as "files".
            source: the checkpoint folder whose tokenizer, chat template, generation config and licence
                are copied.

        Raises:
            OutputError: the disk is full or read-only, or `output` came into use meanwhile.
        """
        with disk_errors(self.output):
            copy_companions(source, self.partial)
            write_json(self.partial / "config.json", config)
            names = self._final_names()
            files = {name: sha256_file(self._file(key)) for key, name in names.items()}
            write_json(self.partial / "qdeploy.json", {**manifest, "files": files})
            write_json(self.partial / INDEX, self._index(names))
            # From here on nothing needs room on the disk, so a full one leaves every shard resumable.
            for key, name in names.items():
                self._file(key).rename(self.partial / name)
            shutil.rmtree(self._records)
            (self.partial / ".fingerprint.json").unlink(missing_ok=True)
        self._folder.publish()

    def _final_names(self) -> dict[str, str]:
        count = len(self._shards)
        return {key: f"model-{i:05d}-of-{count:05d}.safetensors" for i, key in enumerate(self._shards, 1)}

    def _index(self, names: Mapping[str, str]) -> dict[str, Any]:
        sizes = {key: record["tensors"] for key, record in self._shards.items()}
        weight_map = {tensor: names[key] for key in names for tensor in sizes[key]}
        total = sum(sum(tensors.values()) for tensors in sizes.values())
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}

    def _file(self, key: str) -> Path:
        return self.partial / f"{key}.safetensors"

    def _read_records(self) -> dict[str, dict[str, Any]]:
        """Records whose shard is there in its full size."""
        records = {path.stem: read_json(path) for path in self._records.glob("*.json")}
        ordered = sorted(records.items(), key=lambda item: int(item[1]["position"]))
        return {key: record for key, record in ordered if _size(self._file(key)) == record["bytes"]}

    def _remove_strays(self) -> None:
        """Remove shards without a valid record and temporary files of a run that was killed."""
        known = {self._file(key) for key in self._shards}
        for path in [*self.partial.glob("*.safetensors"), *self.partial.rglob("*.tmp")]:
            if path not in known:
                path.unlink()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None
