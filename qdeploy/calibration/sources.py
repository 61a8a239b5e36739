"""Where calibration text comes from: built in, a file, a data set of the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from qdeploy.calibration import builtin
from qdeploy.calibration.chat import Chat
from qdeploy.errors import CalibrationError, UnknownNameError

C4_FILE = "en/c4-train.00000-of-01024.json.gz"
C4_DOCUMENTS = 20_000
ALTERNATIVES = "Use --calibration builtin, or a .txt, .jsonl or .parquet file."


def documents(source: str) -> list[str | Chat]:
    """The texts and chats of one source, in its own order.

    Raises:
        CalibrationError: the file or data set cannot be read or holds no text.
        UnknownNameError: no such source.
    """
    if source in NAMED:
        return list(NAMED[source]())
    path = Path(source)
    if path.suffix not in READERS:
        raise UnknownNameError("calibration source", source, [*NAMES, *(f"FILE{s}" for s in READERS)])
    if not path.is_file():
        raise CalibrationError(
            f"Calibration file {source} does not exist. Give a .txt, .jsonl or .parquet file, or one of "
            f"{', '.join(NAMES)}."
        )
    try:
        found = [document for document in READERS[path.suffix](path) if document]
    except UnicodeDecodeError as error:
        raise CalibrationError(f"Calibration file {path} is not UTF-8 text: {error}.") from error
    except OSError as error:
        raise CalibrationError(f"Cannot read calibration file {path}: {error.strerror}.") from error
    if not any(isinstance(document, Chat) or document.strip() for document in found):
        raise CalibrationError(f"Calibration file {source} ({path.stat().st_size} bytes) holds no text.")
    return found


def _wikitext2() -> list[str]:
    """The training split as one text, its rows joined as in the GPTQ reference."""
    texts = _hub("wikitext2", "Salesforce/wikitext", None, name="wikitext-2-raw-v1", split="train")
    return ["\n\n".join(texts)]


def _c4() -> list[str]:
    return _hub(
        "c4", "allenai/c4", C4_DOCUMENTS, data_files={"train": C4_FILE}, split="train", streaming=True
    )


def _hub(source: str, dataset: str, limit: int | None, **options: Any) -> list[str]:
    """The first `limit` texts of a hub data set."""
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(
            f"Calibration source {source} needs one more package: pip install 'qdeploy[hub]'. {ALTERNATIVES}"
        ) from error
    try:
        return [row["text"] for row in islice(datasets.load_dataset(dataset, **options), limit)]
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise CalibrationError(f"Cannot fetch {dataset} for {source}: {error}. {ALTERNATIVES}") from error


def _text(path: Path) -> Iterator[str]:
    yield path.read_text(encoding="utf-8")


def _jsonl(path: Path) -> Iterator[str | Chat]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row(line, f"{path}, line {number}")


def _row(line: str, where: str) -> str | Chat:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{where} is not JSON: {error}.") from error
    row = row if isinstance(row, dict) else {}
    if isinstance(row.get("text"), str):
        return str(row["text"])
    messages = row.get("messages") or row.get("conversations")
    if messages:
        return Chat.parse(messages, where)
    raise CalibrationError(
        f'{where} needs "text", "messages" or "conversations"; it has {", ".join(row) or "nothing"}.'
    )


def _parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        columns = {field.name: str(field.type) for field in pyarrow.parquet.read_schema(path)}
        if columns.get("text") not in ("string", "large_string"):
            found = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
            raise CalibrationError(
                f'{path} needs a column "text" of strings; it has {found or "no columns"}.'
            )
        yield from pyarrow.parquet.read_table(path, columns=["text"]).column("text").to_pylist()
    except pyarrow.ArrowException as error:
        raise CalibrationError(f"{path} is not a whole Parquet file: {error}.") from error


NAMED: dict[str, Callable[[], Sequence[str | Chat]]] = {
    "builtin-prose": builtin.prose,
    "builtin-code": builtin.code,
    "builtin-chat": builtin.chat,
    "wikitext2": _wikitext2,
    "c4": _c4,
}
NAMES = ("builtin", *NAMED)
"""What may stand in a recipe beside files; "builtin" is the mixture of its parts."""
READERS: dict[str, Callable[[Path], Iterator[str | Chat]]] = {
    ".txt": _text,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
