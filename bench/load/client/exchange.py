"""One request on the wire: what is sent, and what the hot path records of the answer."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


def _int64() -> array[int]:
    return array("q")


@dataclass(slots=True)
class Exchange:
    """Times (monotonic ns, 0 = not reached) and the raw body of one streamed request.

    `read_ns[i]` is when the read that ended at body offset `read_ends[i]` arrived. Nothing is parsed while
    the run is going: 16 bytes a read and the body itself are all that is kept. The body is as it came, in
    chunks if `chunked` and in the content coding `encoding` ("" for none); `wire` takes both off.
    """

    index: int
    scheduled_ns: int = 0
    dispatched_ns: int = 0
    sent_ns: int = 0
    headers_ns: int = 0
    end_ns: int = 0
    body: bytearray = field(default_factory=bytearray)
    chunked: bool = False
    encoding: str = ""
    read_ns: array[int] = field(default_factory=_int64)
    read_ends: array[int] = field(default_factory=_int64)
    error: str | None = None
    detail: str | None = None
    status: int | None = None
