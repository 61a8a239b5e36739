"""What HTTP/1.1 put around a body, taken off after the run (RFC 9112, sections 6 and 7)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from qdeploy.bench.load.client.exchange import Exchange

CHUNK_HEAD = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
MAX_CHUNK_HEAD = 4096
MALFORMED = "malformed response"
GZIP_OR_ZLIB = zlib.MAX_WBITS + 32


class MalformedError(ValueError):
    """Bytes that are not HTTP/1.1, or a body that is not in the encoding that it says."""


class Decoder(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


def walk_chunks(wire: bytearray, at: int) -> tuple[int, bool]:
    """Go from the chunk boundary `at` to the last that has arrived; whether the body ended there.

    Raises:
        MalformedError: no chunk begins at a boundary.
    """
    while True:
        start, size = _chunk_at(wire, at)
        if size == 0:
            end = wire.find(b"\r\n\r\n", start - 2)  # behind the trailer fields, if there are any
            return (at, False) if end < 0 else (end + 4, True)
        if size < 0 or len(wire) < start + size + 2:
            return at, False
        if wire[start + size : start + size + 2] != b"\r\n":
            raise MalformedError(f"a chunk of {size} bytes does not end where it says")
        at = start + size + 2


def decoded(exchange: Exchange) -> tuple[bytes, Sequence[int]]:
    """The body without chunk framing and compression, and where in it each read ends.

    Of a stream that was cut off, what had arrived.

    Raises:
        MalformedError: the body is not in the encoding that its headers name.
    """
    body = bytes(exchange.body)
    ends: Sequence[int] = exchange.read_ends
    if exchange.chunked:
        spans = _spans(exchange.body)
        body, ends = b"".join(body[start:stop] for start, stop in spans), _moved(ends, spans)
    if exchange.encoding in ("", "identity"):
        return body, ends
    if exchange.encoding not in ("gzip", "x-gzip", "deflate"):
        raise MalformedError(f"the body is encoded as {exchange.encoding!r}, which was not asked for")
    return _inflated(body, ends, zlib.decompressobj(GZIP_OR_ZLIB))


def _chunk_at(wire: bytearray, at: int) -> tuple[int, int]:
    """Where the data of the chunk at boundary `at` begins, and its size; -1 while its head is incomplete."""
    head = CHUNK_HEAD.match(wire, at)
    if head:
        return head.end(), int(head[1], 16)
    if wire.find(b"\r\n", at) >= 0 or len(wire) - at > MAX_CHUNK_HEAD:
        raise MalformedError(f"no chunk begins with {bytes(wire[at : at + 20])!r}")
    return at, -1


def _spans(wire: bytearray) -> list[tuple[int, int]]:
    """Start and stop of the data of each chunk, the last one cut off where the wire ends."""
    spans, at = [], 0
    while at < len(wire) and (head := CHUNK_HEAD.match(wire, at)) and (size := int(head[1], 16)):
        spans.append((head.end(), min(head.end() + size, len(wire))))
        at = head.end() + size + 2
    return spans


def _moved(ends: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Offsets in the wire as offsets in the joined spans; between two spans, where the first one ends."""
    edges = np.array(spans, dtype=np.int64).reshape(-1, 2)
    behind = np.cumsum(edges[:, 1] - edges[:, 0])
    before = behind - (edges[:, 1] - edges[:, 0])
    xs = np.concatenate([[0], edges.ravel()])
    ys = np.concatenate([[0], np.stack([before, behind], axis=1).ravel()])
    moved: list[int] = np.interp(ends, xs, ys).astype(np.int64).tolist()
    return moved


def _inflated(body: bytes, ends: Sequence[int], decoder: Decoder) -> tuple[bytes, list[int]]:
    """Decompressed read by read: a token has arrived when the bytes that say so have."""
    found, moved, start = bytearray(), list[int](), 0
    try:
        for end in ends:
            found += decoder.decompress(body[start:end])
            moved.append(len(found))
            start = end
    except zlib.error as error:
        raise MalformedError(f"the compressed body cannot be read: {error}") from error
    return bytes(found), moved
