"""Server-sent events, parsed from a whole recorded body.

Parsing happens after the run, so an event can be split across reads at any byte, inside a UTF-8 sequence or a
CRLF included: the parser sees one body, and the offset where an event ends tells which read completed it.

Source: WHATWG HTML, section 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LINE = re.compile(rb"([^\r\n]*)(\r\n|\n|\r|\Z)")
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its type, its data, and the offset in the body just behind its last byte."""

    type: str
    data: bytes
    end: int


def parse_events(body: bytes) -> Iterator[Event]:
    """The events of `body` in order.

    Comments (keep-alive lines) and unknown fields are skipped. An event that the end of the stream cuts off
    before its blank line is still yielded: some servers close right behind `data: [DONE]`.
    """
    kind, data = b"", list[bytes]()
    for line in LINE.finditer(body, len(BOM) if body.startswith(BOM) else 0):
        name, _, value = line[1].partition(b":")
        value = value.removeprefix(b" ")
        if not line[1]:
            if data:
                yield Event(kind.decode() or "message", b"\n".join(data), line.end())
            kind, data = b"", []
        elif name == b"data":
            data.append(value)
        elif name == b"event":
            kind = value
