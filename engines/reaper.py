"""Runs a command and leaves no process behind: `python -m qdeploy.engines.reaper COMMAND …`.

The parent holds the other end of this process's standard input. When it closes, because the parent asks for a
stop or because it died in whatever way, SIGKILL included, the command gets SIGTERM, time to finish, and then
SIGKILL together with everything it started. Being the "child subreaper" of the tree (prctl(2)), this process
inherits descendants whose own parents died, so that none escapes by leaving the process group.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys

import psutil

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 20.0
"""Time between SIGTERM and SIGKILL: vLLM takes some seconds to shut its engine down."""


def main(command: list[str]) -> int:
    """Run `command` until it ends or the parent does; returns its exit code."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        ended = os.pidfd_open(process.pid)
        select.select([sys.stdin.fileno(), ended], [], [])
    finally:
        _stop(process)
    return process.returncode


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    while left := psutil.Process().children(recursive=True):
        for child in left:
            child.kill()
        psutil.wait_procs(left, timeout=1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
