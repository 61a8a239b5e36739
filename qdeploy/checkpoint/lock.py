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
        self._file = self.path.open("a+b", buffering=0)
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().decode() or "unknown"
            raise self._in_use(f"process {owner} is writing") from None
        # Who held it may have removed the folder between our opening the file and locking it.
        if not self.path.exists() or not os.path.samestat(self.path.stat(), os.fstat(self._file.fileno())):
            raise self._in_use("a process is just leaving")
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())

    def _in_use(self, how: str) -> OutputError:
        return OutputError(
            f"Output folder in use: {how} {self.path.parent}. "
            "Wait for it, stop it, or choose another folder with -o."
        )

    @property
    def held(self) -> bool:
        """Whether it has not been let go."""
        return not self._file.closed

    def release(self) -> None:
        """Let go; does nothing the second time."""
        self._file.close()
