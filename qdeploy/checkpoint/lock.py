"""One writer at a time: an exclusive lock on a folder that the kernel drops when the process dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from qdeploy.errors import OutputError

LOCK = ".lock"


class FolderLock:
    """Holds `folder/.lock`.

    Raises:
        OutputError: another process holds it; the message has its process id.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file = self.path.open("a+", encoding="ascii")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise OutputError(
                f"Output folder in use: process {owner} is writing {folder}. "
                "Wait for it, stop it, or choose another folder with -o."
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let go; does nothing the second time."""
        self._file.close()

    def remove(self, folder: Path) -> None:
        """Delete the lock file from the folder, which may have been renamed, then let go."""
        (folder / LOCK).unlink(missing_ok=True)
        self.release()
