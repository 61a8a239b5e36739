"""A mock of an OpenAI-compatible server: streams of a known pace, as fast as one process can send them.

    python -m qdeploy.bench.load.client.mock_server --port 8000 --first-token 0.05 --gap 0.004

The load client measures itself against it, and so do the benchmarks and the tests. It answers whatever
`qdeploy bench` asks, in tokens that say nothing. Every event carries the CRC-32 of the request that it
answers and its own number, so that an event that is lost, or given to another stream, is seen. The first one
also says when the request was read and the event written, on the machine's monotonic clock: what a client
measures beyond that is the client's and the kernel's own.

It imports the standard library alone, and uvloop where that is installed, and is up in a moment.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

from qdeploy.bench.load.client.event_loop import run

BACKLOG = 4096
MODEL = {"id": "mock", "object": "model", "max_model_len": 1 << 20}
START = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True)
class Pace:
    """How streams go: seconds to the first token and between events, and how many tokens an event carries."""

    first_token_s: float = 0.0
    gap_s: float = 0.0
    tokens_per_event: int = 1


def identity(request: bytes) -> str:
    """What marks the events that answer the request with this body."""
    return f"{zlib.crc32(request):08x}"


class _Stream:
    """One answer on its way out."""

    def __init__(self, connection: _Connection, request: dict[str, Any], tag: str) -> None:
        self._connection, self._tag = connection, tag
        self._pace, self._loop = connection.server.pace, connection.server.loop
        self._total, self._done, self._event = int(request.get("max_tokens") or 16), 0, 0
        options = request.get("stream_options") or {}
        self._usage, self._running = options.get("include_usage"), options.get("continuous_usage_stats")
        self._chat = "messages" in request
        prompt = request.get("prompt") or request["messages"][-1]["content"]
        self._prompt_tokens = len(prompt if isinstance(prompt, list) else prompt.split())
        self._received_ns = monotonic_ns()
        self._due = self._loop.time() + self._pace.first_token_s
        self._timer = self._loop.call_at(self._due, self._step)

    def cancel(self) -> None:
        self._timer.cancel()

    def _step(self) -> None:
        """Write the next event, or with no gap all of them, and plan the one after it."""
        parts = [] if self._event else [START]
        while True:
            parts.append(_chunk(self._next_event()))
            if self._done >= self._total or self._pace.gap_s:
                break
        if self._done >= self._total:
            self._connection.end(b"".join([*parts, *self._tail()]))
            return
        self._connection.transport.write(b"".join(parts))
        self._due += self._pace.gap_s
        self._timer = self._loop.call_at(self._due, self._step)

    def _next_event(self) -> str:
        text = f" {self._event}"
        choice = f'"delta":{{"content":"{text}"}}' if self._chat else f'"text":"{text}"'
        self._done = min(self._done + self._pace.tokens_per_event, self._total)
        extra = "" if self._event else f',"mock":{{"read_ns":{self._received_ns},"sent_ns":{monotonic_ns()}}}'
        if self._running:
            extra += f',"usage":{self._counts()}'
        self._event += 1
        return f'{{"id":"{self._tag}","choices":[{{"index":0,{choice},"finish_reason":null}}]{extra}}}'

    def _tail(self) -> Iterator[bytes]:
        if self._usage:
            yield _chunk(f'{{"id":"{self._tag}","choices":[],"usage":{self._counts()}}}')
        yield _chunk("[DONE]")
        yield LAST_CHUNK

    def _counts(self) -> str:
        return f'{{"prompt_tokens":{self._prompt_tokens},"completion_tokens":{self._done}}}'


def _chunk(data: str) -> bytes:
    """One event in a chunk of its own, as servers send it. The data is ASCII."""
    return f"{len(data) + 8:x}\r\ndata: {data}\n\n\r\n".encode()


class _Connection(asyncio.Protocol):
    """A client's connection; requests on it are answered one after the other."""

    transport: asyncio.Transport

    def __init__(self, server: MockServer) -> None:
        self.server, self._received = server, bytearray()
        self._stream: _Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a socket's can write too

    def connection_lost(self, _: Exception | None) -> None:
        if self._stream:
            self._stream.cancel()
            self.server.running -= 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._stream:
            self._next_request()

    def end(self, last: bytes) -> None:
        """Write the end of a stream; its connection is free again."""
        self.transport.write(last)
        self._stream = None
        self.server.running -= 1
        self._next_request()

    def _next_request(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        request, *fields = bytes(self._received[:end]).split(b"\r\n")
        lengths = [f.split(b":")[1] for f in fields if f[:15].lower() == b"content-length:"]
        stop = end + 4 + int(lengths[0] if lengths else 0)
        if len(self._received) < stop:
            return
        body = bytes(self._received[end + 4 : stop])
        del self._received[:stop]
        self._answer(request.split(b" ")[1].decode(), body)

    def _answer(self, path: str, body: bytes) -> None:
        if path.endswith("/completions"):
            request = json.loads(body)
            self.server.running += 1
            self.server.served += 1
            self._stream = _Stream(self, request, identity(body))
        elif path in (pages := self.server.pages(body)):
            self._write("200 OK", pages[path])
        else:
            self._write("404 Not Found", '{"error": {"message": "no such route"}}')

    def _write(self, status: str, text: str) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
        self.transport.write((head + text).encode())
        self._next_request()


class MockServer:
    """What its connections share; `running` streams are open, `served` were begun."""

    def __init__(self, pace: Pace) -> None:
        self.pace, self.running, self.served = pace, 0, 0
        self.loop = asyncio.get_running_loop()

    def pages(self, body: bytes) -> dict[str, str]:
        """Path → what is answered there, streams aside."""
        running = f'vllm:num_requests_running{{engine="0",model_name="mock"}} {self.running}\n'
        found = {
            "/v1/models": json.dumps({"data": [MODEL]}),
            "/version": '{"version": "mock"}',
            "/metrics": f"# TYPE vllm:num_requests_running gauge\n{running}",
        }
        if body:
            found["/tokenize"] = _tokens(json.loads(body))
        return found


def _tokens(request: dict[str, Any]) -> str:
    """A word is a token."""
    return json.dumps({"tokens": [*range(len(str(request.get("prompt")).split()))]})


async def serve(pace: Pace, port: int, stop: asyncio.Event) -> None:
    """Serve on loopback until `stop`; says on standard output where."""
    server = MockServer(pace)
    listening = await server.loop.create_server(
        lambda: _Connection(server), "127.0.0.1", port, backlog=BACKLOG
    )
    print(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1", flush=True)
    async with listening:
        await stop.wait()


@contextmanager
def mock_server(pace: Pace) -> Iterator[str]:
    """The base URL of a mock in a process of its own, which ends with the block or with us."""
    options = [f"--first-token={pace.first_token_s}", f"--gap={pace.gap_s}"]
    command = [
        sys.executable,
        "-P",
        "-m",
        __name__,
        *options,
        "--tokens-per-event",
        str(pace.tokens_per_event),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--until-stdin-ends"], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


async def _main(options: argparse.Namespace) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def watch() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(stop.set)

    if options.until_stdin_ends:
        threading.Thread(target=watch, daemon=True).start()
    await serve(Pace(options.first_token, options.gap, options.tokens_per_event), options.port, stop)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="0: any that is free (default)")
    parser.add_argument("--first-token", type=float, default=0.0, help="seconds to the first token")
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between events; 0: all in one write")
    parser.add_argument("--tokens-per-event", type=int, default=1)
    parser.add_argument("--until-stdin-ends", action="store_true", help="stop when standard input ends")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        run(_main(_options()))
    except KeyboardInterrupt:
        sys.exit(130)
