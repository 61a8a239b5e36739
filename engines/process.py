"""A server process under supervision: ready in time or failed with the reason, and never outliving us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx

from qdeploy.engines import logs, reaper
from qdeploy.errors import EngineError, disk_errors

POLL_S = 0.25


class ServerProcess:
    """A server started through the reaper, in a session of its own, so that Ctrl-C reaches only us.

    The reaper stops the whole tree as soon as our end of its standard input closes: at `stop`, at the end
    of a `with` block, and when this process ends in whatever way.

    Args:
        log: gets standard output and standard error; overwritten.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.command, self.log = list(command), log
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                self._reaper = subprocess.Popen(
                    [sys.executable, "-m", reaper.__name__, *command],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(environment),
                    start_new_session=True,
                )

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the reaper and id of the process group."""
        return self._reaper.pid

    def alive(self) -> bool:
        """Whether the server still runs."""
        return self._reaper.poll() is None

    def wait(self) -> int:
        """Wait until the server ends by itself; returns its exit code."""
        return self._reaper.wait()

    def wait_ready(self, urls: Sequence[str], deadline_s: float) -> float:
        """Wait until every URL answers; returns the seconds it took.

        Raises:
            EngineError: the server died or the deadline passed; the message holds the cause from the log.
                The server is stopped.
        """
        start = time.monotonic()
        try:
            with httpx.Client(timeout=5.0, trust_env=False) as client:
                while not all(_answers(client, url) for url in urls):
                    self._check(time.monotonic() - start, deadline_s)
                    time.sleep(POLL_S)
        except BaseException:
            self.stop()
            raise
        return time.monotonic() - start

    def stop(self) -> None:
        """Stop the server and everything it started; safe to call twice."""
        if self._reaper.stdin is not None:
            self._reaper.stdin.close()
        try:
            self._reaper.wait(reaper.GRACE_S + 10)
        except subprocess.TimeoutExpired:
            self._reaper.kill()
            self._reaper.wait()
        with suppress(ProcessLookupError):
            os.killpg(self._reaper.pid, signal.SIGKILL)

    def _check(self, waited_s: float, deadline_s: float) -> None:
        if not self.alive():
            state = f"died while starting (exit code {self._reaper.returncode}, after {waited_s:.0f} s)"
        elif waited_s > deadline_s:
            state = f"was not ready after {deadline_s:.0f} s"
        else:
            return
        raise EngineError(f"The engine {state}.\n{logs.failure(logs.read_log(self.log))}\n  Log: {self.log}")


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        # A server with a key of its own is up, too.
        return client.get(url).status_code in (httpx.codes.OK, httpx.codes.UNAUTHORIZED)
    except httpx.HTTPError:
        return False
