"""TCP ports on this machine."""

from __future__ import annotations

import socket

import psutil

from qdeploy.errors import UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that no other reaches it by."""


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on, chosen by the kernel."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def check_free(port: int, host: str = "127.0.0.1") -> None:
    """Refuse a port that is taken.

    Raises:
        UsageError: names the port and, where the system tells, the process that has it.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"Cannot listen on {host}:{port}: {error.strerror}{_holder(port)}. "
                "Choose another one with --port; --port 0 takes a free one."
            ) from error


def _holder(port: int) -> str:
    try:
        pids = {
            c.pid
            for c in psutil.net_connections("tcp")
            if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN
        }
        names = [f"{psutil.Process(pid).name()} (pid {pid})" for pid in pids if pid]
    except psutil.Error:
        names = []
    return f"; held by {', '.join(names)}" if names else ""
