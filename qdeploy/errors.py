"""Every error qdeploy raises on purpose.

    QDeployError                exit code 2: one message for the user, no traceback
      UsageError                an option or argument that cannot work
        UnknownNameError        a method, scheme, engine … that does not exist; says what is near
      EntryPointError           something that an installed package registers and that cannot be used
      RecipeError               a recipe that is not valid
      CheckpointError           a model folder that is missing, broken or of an unknown architecture
      CalibrationError          calibration text that is missing, empty or too short
      OutputError               the output cannot be written: in use, disk full
      ResourceError             memory or disk that is too small for the work
      QuantizationError         a module that cannot be quantized as asked
      DistributedError          processes of one run that do not find or have lost each other
      ConversionError           a checkpoint that another format cannot hold
      ExportError               a checkpoint that the target engine would refuse
      EngineError               an engine that is not installed, does not start or died
      EndpointError             an endpoint that refuses, fails or lacks what is needed
      ComparisonError           two runs that may not be compared
      VerificationError         exit code 1: the served model is not the checkpoint
      GateError                 exit code 1: a measured figure is beyond the limit the user set
      Interrupted               exit code 130: stopped with Ctrl-C; the same command goes on from there

A message says what failed, where (module, file), the number that was wrong, and the smallest change that
mends it.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class QDeployError(Exception):
    """Base of all errors that end in one message for the user."""

    exit_code = 2


class UsageError(QDeployError):
    """An option or argument that cannot work."""


class UnknownNameError(UsageError):
    """A name that is not registered; the message offers the nearest ones and lists what exists."""

    def __init__(self, kind: str, name: str, available: Iterable[str]) -> None:
        names = sorted(available)
        near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=3, cutoff=0.5)
        guess = [n for n in names if n.lower() in near]
        hint = f" Did you mean {' or '.join(map(repr, guess))}?" if guess else ""
        super().__init__(f"Unknown {kind} {name!r}.{hint} Available: {', '.join(names) or 'none'}.")
        self.name = name
        self.suggestions = guess


class EntryPointError(QDeployError):
    """Something that an installed package registers and that cannot be used.

    Args:
        kind: what it would be, e.g. "method".
        name: under which name.
        origin: the package, with its version.
        reason: what is wrong.
    """

    def __init__(self, kind: str, name: str, origin: str, reason: str) -> None:
        super().__init__(f"The {kind} {name!r} of {origin} cannot be used: {reason}. Mend or uninstall it.")
        self.name, self.origin, self.reason = name, origin, reason


class RecipeError(QDeployError):
    """A recipe that is not valid."""


class CheckpointError(QDeployError):
    """A model folder that is missing, broken or of an unknown architecture."""


class CalibrationError(QDeployError):
    """Calibration text that is missing, empty or too short."""


class OutputError(QDeployError):
    """The output cannot be written."""


class ResourceError(QDeployError):
    """Memory or disk that is too small for the work."""


class QuantizationError(QDeployError):
    """A module that cannot be quantized as asked."""


class DistributedError(QDeployError):
    """Processes of one run that do not find or have lost each other."""


class ConversionError(QDeployError):
    """A checkpoint that another format cannot hold."""


class ExportError(QDeployError):
    """A checkpoint that the target engine would refuse."""


class EngineError(QDeployError):
    """An engine that is not installed, does not start or died."""


class EndpointError(QDeployError):
    """An endpoint that refuses, fails or lacks a needed capability."""


class ComparisonError(QDeployError):
    """Two runs that may not be compared."""


class VerificationError(QDeployError):
    """The served model does not compute what its checkpoint says."""

    exit_code = 1


class GateError(QDeployError):
    """A measured figure is beyond a limit that the user set."""

    exit_code = 1


class Interrupted(QDeployError):
    """Stopped with Ctrl-C in the middle of work that the same command resumes."""

    exit_code = 130


ROOM, ACCESS, ELSEWHERE = "Make room", "Allow writing there", "Choose another folder with -o"
DISK_TROUBLE = {
    errno.ENOSPC: ("the disk is full", ROOM),
    errno.EDQUOT: ("the disk quota is used up", ROOM),
    errno.EFBIG: ("the file is larger than the file system or ulimit -f allows", "Allow larger files"),
    errno.EROFS: ("the file system is read-only", ELSEWHERE),
    errno.EACCES: ("permission denied", ACCESS),
    errno.EPERM: ("permission denied", ACCESS),
    errno.ENOTDIR: ("part of the path is a file, not a folder", ELSEWHERE),
}
"""Error number → what is wrong, and what to do about it."""


OUT_OF_MEMORY = re.compile(r"allocate memory|out of memory", re.IGNORECASE)
"""torch and safetensors raise RuntimeErrors that say so, and nothing else tells them apart."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what can go wrong with a disk while writing `path` into an OutputError that says how to go on."""
    try:
        yield
    except OSError as error:
        # safetensors wraps a full disk in an error without a number.
        full = "No space left on device" in str(error)
        trouble = DISK_TROUBLE.get(errno.ENOSPC if full else error.errno or 0)
        if trouble is None:
            raise
        reason, remedy = trouble
        raise OutputError(
            f"Cannot write {path}: {reason}. {remedy}, then run the same command again."
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was refused: by Python, torch, a GPU, or while a file was mapped."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError | RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None
    )
