"""Answers on disk as they arrive, so that a run of many requests goes on where it was stopped.

One JSON object a line, appended and handed to the operating system at once: what has been answered survives
the end of this process, however it comes. A line that was not written whole is dropped when the file is read.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any

from qdeploy.bench.accuracy.encoding import Generation, Request
from qdeploy.bench.accuracy.items import Answer, Likelihood
from qdeploy.progress import warn


class Journal:
    """The answers known so far; a context manager that closes the file.

    Args:
        path: the file; made if it is not there.
        model: what is asked, in whatever words tell two models apart. Answers of another one are dropped.
    """

    def __init__(self, path: Path, model: dict[str, Any]) -> None:
        self.answers: dict[str, Answer] = {}
        header = {"journal": 1, "model": model}
        lines = _whole_lines(path)
        if lines and lines[0] == header:
            self.answers = {line["key"]: _answer(line) for line in lines[1:]}
        elif lines:
            warn(
                f"{path} holds the answers of another model ({lines[0].get('model')}): they are asked again."
            )
            path.unlink()
        self._file = path.open("a", encoding="utf-8")
        if not self.answers and self._file.tell() == 0:
            self._write(header)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._file.close()

    def get(self, request: Request | Generation) -> Answer | None:
        """The answer, where it is known."""
        return self.answers.get(key(request))

    def add(self, request: Request | Generation, answer: Answer) -> None:
        """Keep an answer."""
        name = key(request)
        said = {"text": answer} if isinstance(answer, str) else answer._asdict()
        self._write({"key": name, **said})
        self.answers[name] = answer

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()


def key(request: Request | Generation) -> str:
    """Names a request by all that its answer depends on."""
    asked = (request.start, request.greedy) if isinstance(request, Request) else request.call
    ids = array("q", request.ids).tobytes()
    return hashlib.sha256(repr(asked).encode() + ids).hexdigest()[:32]


def _answer(line: dict[str, Any]) -> Answer:
    return str(line["text"]) if "text" in line else Likelihood(line["loglikelihood"], line["greedy"])


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that were written whole; what follows them is cut off the file."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    found: list[dict[str, Any]] = []
    end = 0
    for line in data.splitlines(keepends=True):
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(value, dict):
            break
        found.append(value)
        end += len(line)
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
    return found
