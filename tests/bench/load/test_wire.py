"""Framing and compression taken off recorded bodies, however the network cut them."""

from __future__ import annotations

import gzip
import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdeploy.bench.load.client.exchange import Exchange
from qdeploy.bench.load.client.wire import MalformedError, decoded, walk_chunks

BODY = 'data: {"text": "é\u2028漢"}\r\n\r\n: ping\n\ndata: [DONE]\n\n'.encode()


def chunked(pieces: list[bytes], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    frames = [b"%X%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces if piece]
    return b"".join([*frames, b"0\r\n", trailer, b"\r\n"])


def recorded(wire: bytes, cuts: list[int], chunked: bool = True, encoding: str = "") -> Exchange:
    exchange = Exchange(0, chunked=chunked, encoding=encoding)
    for start, stop in pairwise([0, *cuts, len(wire)]):
        exchange.body += wire[start:stop]
        exchange.read_ns.append(stop)
        exchange.read_ends.append(stop)
    return exchange


@st.composite
def cut(draw: st.DrawFn, size: int) -> list[int]:
    return sorted(draw(st.sets(st.integers(1, size - 1), max_size=20)))


@given(st.data())
def test_chunks_and_reads_cut_anywhere_give_the_body_back(data: st.DataObject) -> None:
    edges = [0, *data.draw(cut(len(BODY))), len(BODY)]
    pieces = [BODY[a:b] for a, b in pairwise(edges)]
    wire = chunked(
        pieces, data.draw(st.sampled_from([b"", b" ;a=b"])), data.draw(st.sampled_from([b"", b"A: b\r\n"]))
    )
    exchange = recorded(wire, data.draw(cut(len(wire))))
    body, ends = decoded(exchange)
    assert body == BODY
    for wire_end, end in zip(exchange.read_ends, ends, strict=True):
        assert decoded(recorded(wire[:wire_end], []))[0] == BODY[:end]


@pytest.mark.parametrize("trailer", [b"", b"A: b\r\nC: d\r\n"])
def test_the_walk_finds_the_end_at_its_last_byte_and_not_before(trailer: bytes) -> None:
    wire = chunked([BODY[:7], BODY[7:]], trailer=trailer)
    boundary = 0
    for size in range(len(wire)):
        boundary, over = walk_chunks(bytearray(wire[:size]), boundary)
        assert not over
    assert walk_chunks(bytearray(wire), boundary) == (len(wire), True)


@pytest.mark.parametrize("wire", [b"-5\r\nhello\r\n", b"zz\r\n", b"\r\n", b"3\r\nhello\r\n", b"1" * 5000])
def test_what_is_no_chunk_is_refused(wire: bytes) -> None:
    with pytest.raises(MalformedError):
        walk_chunks(bytearray(wire), 0)


@pytest.mark.parametrize(
    ("encoding", "compressed"),
    [("gzip", gzip.compress(BODY)), ("deflate", zlib.compress(BODY))],
)
def test_compressed_bodies_are_read_byte_by_byte(encoding: str, compressed: bytes) -> None:
    wire = chunked([compressed[:9], compressed[9:]])
    body, ends = decoded(recorded(wire, list(range(1, len(wire))), encoding=encoding))
    assert body == BODY
    assert ends[-1] == len(BODY)
    assert list(ends) == sorted(ends)


def test_tokens_flushed_through_gzip_arrive_when_they_are_flushed() -> None:
    compressor = zlib.compressobj(wbits=31)
    first = compressor.compress(BODY) + compressor.flush(zlib.Z_SYNC_FLUSH)
    second = compressor.compress(BODY) + compressor.flush()
    _, ends = decoded(recorded(first + second, [len(first)], chunked=False, encoding="gzip"))
    assert ends == [len(BODY), 2 * len(BODY)]


@pytest.mark.parametrize("encoding", ["br", "gzip"])
def test_an_encoding_that_cannot_be_read(encoding: str) -> None:
    with pytest.raises(MalformedError):
        decoded(recorded(BODY, [], chunked=False, encoding=encoding))
