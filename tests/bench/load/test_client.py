"""The client against servers that send what servers have been seen to send."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from qdeploy.bench.load.client.client import Client
from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.client.mock_server import Pace, identity, mock_server
from qdeploy.bench.load.figures.outcome import Outcome, read_outcome
from qdeploy.errors import UsageError
from tests.bench.load.scripted import Script, answering, read_request, scripted

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
EVENTS = (
    b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\r\n\r\n'
    b": ping\n\n"
    b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"a\xe2\x80\xa8b [DONE] data: [DONE]"}}]}\n\n'
    b'data: {"choices":[{"delta":{"content":"c"}}],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n'
    b'data: {"choices":[]}\n\n'
)
DONE = b"data: [DONE]\n\n"
STREAM = EVENTS + DONE


def frames(body: bytes, size: int = 50) -> bytes:
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def sized(body: bytes, *, head: bytes = HEAD, fields: bytes = b"") -> bytes:
    return head + fields + b"content-length: %d\r\n\r\n" % len(body) + body


CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n" + frames(STREAM) + b"0\r\n\r\n"


async def send(port: int, *, timeout_s: float = 5.0, count: int = 1) -> list[Exchange]:
    async with Client(f"http://127.0.0.1:{port}/v1/completions", None, timeout_s) as client:
        return [await client.send(Exchange(index), b"{}") for index in range(count)]


async def answer_to(script: Script, *, timeout_s: float = 5.0) -> tuple[Exchange, Outcome]:
    async with scripted(script) as port:
        [exchange] = await send(port, timeout_s=timeout_s)
    return exchange, read_outcome(exchange, 0)


def check(outcome: Outcome) -> None:
    assert (outcome.error, outcome.prompt_tokens, outcome.output_tokens) == (None, 3, 4)
    assert len(outcome.chunk_ns) == 3


@pytest.mark.parametrize(
    ("answer", "closes"),
    [
        (CHUNKED, False),
        (sized(STREAM), False),
        (HEAD + b"connection: close\r\n\r\n" + STREAM, True),
        (b"HTTP/1.0 200 OK\r\n\r\n" + STREAM, True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED, False),
        (CHUNKED.removesuffix(b"\r\n") + b"trailer: x\r\n\r\n", False),
        (sized(gzip.compress(STREAM), fields=b"Content-Encoding: gzip\r\n"), False),
        (sized(zlib.compress(STREAM), fields=b"Content-Encoding: deflate\r\n"), False),
    ],
)
async def test_every_way_to_send_a_body(answer: bytes, closes: bool) -> None:
    exchange, outcome = await answer_to(answering(answer, close=closes))
    check(outcome)
    assert exchange.sent_ns <= exchange.headers_ns <= exchange.read_ns[0] <= exchange.end_ns


@pytest.mark.parametrize("answer", [CHUNKED, sized(STREAM)])
async def test_every_split_in_two_gives_the_same_answer(answer: bytes) -> None:
    """The first part goes out alone, so that the two are two reads."""
    split = iter(range(1, len(answer)))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            at = next(split)
            writer.write(answer[:at])
            await asyncio.sleep(0.001)
            writer.write(answer[at:])

    async with scripted(script) as port:
        exchanges = await send(port, count=len(answer) - 1)
    for exchange in exchanges:
        check(read_outcome(exchange, 0))
    assert sum(len(e.read_ns) == 2 for e in exchanges) > len(exchanges) / 2


async def test_byte_by_byte() -> None:
    exchange, outcome = await answer_to(answering(CHUNKED, read_size=1))
    check(outcome)
    assert len(exchange.read_ns) > 100
    assert all(a <= b for a, b in pairwise(exchange.read_ns))


@pytest.mark.parametrize("body", [frames(STREAM), frames(EVENTS) + frames(DONE, size=200)])
async def test_a_connection_left_open_after_done_is_not_waited_for(body: bytes) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n" + body)
        await reader.read()

    async with scripted(script) as port:
        exchanges = await send(port, count=2)
    for exchange in exchanges:
        check(read_outcome(exchange, 0))
        assert exchange.end_ns == exchange.read_ns[-1]


async def test_a_late_end_of_the_body_frees_the_connection() -> None:
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            await read_request(reader)
            writer.write(CHUNKED.removesuffix(b"0\r\n\r\n"))
            await asyncio.sleep(0.02)
            writer.write(b"0\r\n\r\n")

    async with scripted(script) as port, Client(f"http://127.0.0.1:{port}/", None, 5.0) as client:
        for index in range(3):
            check(read_outcome(await client.send(Exchange(index), b"{}"), 0))
            await asyncio.sleep(0.1)
    assert connections == 1


async def test_in_band_error() -> None:
    body = EVENTS + b'data: {"error": {"message": "out of memory"}}\n\n' + DONE
    _, outcome = await answer_to(answering(sized(body)))
    assert outcome.error == "error in the stream"
    assert "out of memory" in (outcome.detail or "")


@pytest.mark.parametrize(
    ("answer", "error", "detail"),
    [
        (sized(b"overloaded", head=b"HTTP/1.1 503 Busy\r\n"), "HTTP 503", "overloaded"),
        (
            sized(gzip.compress(b"busy"), head=b"HTTP/1.1 503 B\r\ncontent-encoding: gzip\r\n"),
            "HTTP 503",
            "busy",
        ),
        (sized(b"", head=b"HTTP/1.1 307 Moved\r\nlocation: /v2\r\n"), "HTTP 307", "redirected to /v2"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n\r\n", "malformed response", "SSH-2.0"),
        (HEAD + b"content-length: many\r\n\r\n", "malformed response", "'many'"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nhello\r\n\r\n", "malformed response", "hello"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000, "malformed response", "no end of the headers"),
        (HEAD + b"content-encoding: br\r\n" + sized(STREAM, head=b""), "malformed response", "'br'"),
    ],
)
async def test_answers_that_are_no_streams(answer: bytes, error: str, detail: str) -> None:
    _, outcome = await answer_to(answering(answer))
    assert outcome.error == error
    assert detail in (outcome.detail or "")


@pytest.mark.parametrize("answer", [b"", HEAD, CHUNKED[:200], sized(STREAM)[:200]])
async def test_a_connection_that_breaks(answer: bytes) -> None:
    exchange, _ = await answer_to(answering(answer, close=True))
    assert exchange.error == "connection reset"


async def test_silence_is_a_timeout() -> None:
    exchange, _ = await answer_to(answering(CHUNKED[:200]), timeout_s=0.2)
    assert exchange.error == "timeout"
    assert exchange.end_ns - exchange.dispatched_ns >= 200e6


async def test_nobody_listens() -> None:
    async with scripted(answering(b"")) as port:
        pass
    [exchange] = await send(port)
    assert exchange.error == "cannot connect"


async def test_a_server_that_hangs_up_at_once() -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with scripted(script) as port:
        exchanges = await send(port, count=20)
    assert {e.error for e in exchanges} <= {"cannot connect", "connection reset"}


async def test_a_kept_connection_that_the_server_closes_is_replaced_once() -> None:
    """The second request on a connection is read and dropped; on a new one it is answered."""
    requests = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await read_request(reader)
        requests += 1
        writer.write(CHUNKED)
        await read_request(reader)
        requests += 1

    async with scripted(script) as port:
        exchanges = await send(port, count=2)
    assert [e.error for e in exchanges] == [None, None]
    assert requests == 3


async def test_a_request_of_which_an_answer_has_begun_is_never_sent_again() -> None:
    requests = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        for answer in (CHUNKED, b"HTTP/1.1 2"):
            await read_request(reader)
            requests += 1
            writer.write(answer)

    async with scripted(script) as port:
        exchanges = await send(port, count=2)
    assert [e.error for e in exchanges] == [None, "connection reset"]
    assert requests == 2


async def test_what_follows_an_answer_unasked_is_no_part_of_the_next() -> None:
    async with scripted(answering(CHUNKED + b"HTTP/1.1 408 Too late\r\n\r\n")) as port:
        for exchange in await send(port, count=3):
            check(read_outcome(exchange, 0))


async def test_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(CHUNKED)

    async with scripted(script) as port, Client(f"http://127.0.0.1:{port}/v1/x?a=b", "key", 5.0) as client:
        await client.send(Exchange(0), b'{"a": 1}')
    [(head, body)] = seen
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/x?a=b HTTP/1.1"
    assert {b"Host: 127.0.0.1:%d" % port, b"Accept-Encoding: identity", b"Authorization: Bearer key"} <= {
        *lines
    }
    assert body == b'{"a": 1}'


@pytest.mark.parametrize(("url", "key"), [("http://x/a b", None), ("http://x/", "secret\nHost: y")])
def test_what_cannot_stand_in_a_request(url: str, key: str | None) -> None:
    with pytest.raises(UsageError, match="characters that HTTP does not allow") as caught:
        Client(url, key, 1.0)
    assert "secret" not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key.pem -out cert.pem"
    done = subprocess.run([*command.split(), *name], cwd=folder, capture_output=True)
    if done.returncode:
        pytest.skip("openssl makes no certificate here")
    return folder


async def test_tls_with_a_trusted_and_an_unknown_certificate(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    async with scripted(answering(CHUNKED), tls) as port:
        url = f"https://localhost:{port}/v1/completions"
        async with Client(url, None, 5.0) as client:
            exchange = await client.send(Exchange(0), b"{}")
        assert exchange.error == "cannot connect"
        assert "certificate verify failed" in (exchange.detail or "")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
        async with Client(url, None, 5.0) as client:
            for index in range(2):
                check(read_outcome(await client.send(Exchange(index), b"{}"), 0))


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    with mock_server(Pace(first_token_s=0.01, gap_s=0.002)) as url:
        yield url


@pytest.mark.parametrize("route", ["/completions", "/chat/completions"])
async def test_many_streams_at_once_lose_and_mix_up_nothing(mock: str, route: str) -> None:
    field = b'"messages": [{"content": "%d"}]' if "chat" in route else b'"prompt": "%d"'
    payloads = [
        b"{" + field % i + b', "max_tokens": 20, "stream_options": {"include_usage": true}}'
        for i in range(300)
    ]
    async with Client(mock + route, None, 30.0) as client:
        exchanges = await asyncio.gather(*(client.send(Exchange(i), p) for i, p in enumerate(payloads)))
    for exchange, payload in zip(exchanges, payloads, strict=True):
        outcome = read_outcome(exchange, 0)
        assert (outcome.error, outcome.output_tokens, len(outcome.chunk_ns)) == (None, 20, 20)
        assert exchange.body.count(identity(payload).encode()) == 21
