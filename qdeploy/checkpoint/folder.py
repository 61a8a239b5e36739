"""A folder that appears whole: made inside `OUT.partial`, which is locked meanwhile, then renamed to `OUT`.

Nothing but the files of the finished folder is ever in `OUT.partial/contents`, so that a single rename
publishes it, and whatever moment a process dies at, `OUT` is whole or not there.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from qdeploy import catalogue
from qdeploy.checkpoint.lock import LOCK, FolderLock
from qdeploy.errors import OutputError, disk_errors
from qdeploy.files import fsync_folder


def refuse_used(output: Path) -> None:
    """Raise OutputError if `output` is a file or a folder that is not empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        found = "is not empty" if output.is_dir() else "is a file"
        raise OutputError(
            f"Output folder in use: {output} {found}. Choose another folder with -o, or remove it first."
        )


class OutputFolder:
    """The folder `output` in the making; a context manager that holds its lock.

    Attributes:
        output: the folder's final, absolute path.
        partial: where the work is done; a sibling, so that the rename is atomic.
        contents: what `publish` renames to `output`.

    Raises:
        OutputError: `output` is not empty, another process is writing it, or the disk refuses.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.partial = output.resolve(), _partial(output)
        self.contents = self.partial / "contents"
        self._refuse_used()
        with disk_errors(self.partial):
            self.partial.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(self.partial)
            self._lock = FolderLock(self.partial)
            self.contents.mkdir(exist_ok=True)
            fsync_folder(self.partial)
            fsync_folder(self.partial.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the lock; what was written stays."""
        self._lock.release()

    def clear(self) -> None:
        """Remove what an earlier run left."""
        _empty(self.partial)
        self.contents.mkdir()

    def discard(self) -> None:
        """Remove the partial folder and let go of the lock; does nothing once that is let go."""
        if self._lock.held:
            _remove(self.partial, self._lock)

    def publish(self) -> None:
        """Rename to `output`, remove the partial folder, enter the run in the catalogue.

        Raises:
            OutputError: `output` came into use meanwhile, or the disk refuses.
        """
        self._refuse_used()
        with disk_errors(self.output):
            _fsync_tree(self.contents)
            self.contents.rename(self.output)
            fsync_folder(self.output.parent)
        self.discard()
        catalogue.record(self.output)

    def _refuse_used(self) -> None:
        refuse_used(self.output)
        if self.output.is_mount():
            raise OutputError(
                f"{self.output} is a mount point, which a finished folder cannot replace. "
                f"Write to a folder in it: -o {self.output / 'model'}."
            )


def remove_leftovers(output: Path) -> None:
    """Remove the partial folder of a process that died after it had published `output`.

    Raises:
        OutputError: the process lives.
    """
    partial = _partial(output)
    if partial.exists():
        _remove(partial, FolderLock(partial))


def _partial(output: Path) -> Path:
    output = output.resolve()
    return output.with_name(output.name + ".partial")


def _refuse_foreign(partial: Path) -> None:
    """What is in a folder that holds no lock file was not put there by us, and must not be removed."""
    if any(partial.iterdir()) and not (partial / LOCK).exists():
        raise OutputError(
            f"{partial} is where the work is done, and holds other files. Move it away, or choose another "
            "folder with -o."
        )


def _remove(partial: Path, lock: FolderLock) -> None:
    _empty(partial)
    lock.path.unlink()
    # Another process may have begun here once the lock file was gone.
    with suppress(OSError):
        partial.rmdir()
    lock.release()


def _empty(partial: Path) -> None:
    """Remove all but the lock file: what is hidden first, so that no record outlives what it tells of."""
    for path in sorted(partial.iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _fsync_tree(folder: Path) -> None:
    """Make every file under `folder` survive a power cut."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with (Path(parent) / name).open("rb") as file:
                os.fsync(file.fileno())
        fsync_folder(Path(parent))
