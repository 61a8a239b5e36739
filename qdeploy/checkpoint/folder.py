"""A folder that appears whole: made under the name `OUT.partial`, locked meanwhile, renamed to `OUT`."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from qdeploy.checkpoint.lock import FolderLock
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
        partial: where its files go until `publish`; a sibling, so that the rename is atomic.

    Raises:
        OutputError: `output` is not empty, another process is writing it, or the disk refuses.
    """

    def __init__(self, output: Path) -> None:
        self.output = output.resolve()
        self.partial = self.output.with_name(self.output.name + ".partial")
        self._refuse_used()
        with disk_errors(self.partial):
            self.partial.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.partial)

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
        for path in self.partial.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self._lock.path:
                path.unlink()

    def discard(self) -> None:
        """Remove the partial folder and let go of the lock."""
        shutil.rmtree(self.partial)
        self.close()

    def publish(self) -> None:
        """Rename to `output`.

        Raises:
            OutputError: `output` came into use meanwhile, or the disk refuses.
        """
        self._refuse_used()
        with disk_errors(self.output):
            fsync_folder(self.partial)
            self.partial.rename(self.output)
            fsync_folder(self.output.parent)
        self._lock.remove(self.output)

    def _refuse_used(self) -> None:
        refuse_used(self.output)
        if self.output.is_mount():
            raise OutputError(
                f"{self.output} is a mount point, which a finished folder cannot replace. "
                f"Write to a folder in it: -o {self.output / 'model'}."
            )
