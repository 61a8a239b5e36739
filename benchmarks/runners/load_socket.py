"""The reference: one blocking socket, request after request, and nothing between the clock and the kernel."""

from __future__ import annotations

import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from load_job import BEGIN, LoadJob, jobs, report, say


def main(job: LoadJob) -> dict[str, Any]:
    """Seconds to first token of requests sent for as long as the load beside it lasts."""
    say(BEGIN)
    parts, found = urlsplit(job.url), list[float]()
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(job.requests):
            body = json.dumps({"prompt": job.prompt(index), "max_tokens": job.tokens}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: mock\r\nContent-Length: {len(body)}\r\n\r\n"
            start = time.perf_counter()
            connection.sendall(head.encode() + body)
            received = connection.recv(1 << 16)
            found.append(time.perf_counter() - start)
            while not received.endswith(b"0\r\n\r\n"):
                received = connection.recv(1 << 16)
    return {"first_token_s": found}


if __name__ == "__main__":
    for job in jobs():
        report(main(job))
