"""Where calibration text comes from: built in, a file, a data set of the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from qdeploy.calibration.builtin import builtin_text
from qdeploy.errors import CalibrationError, UnknownNameError

C4_FILE = "en/c4-train.00000-of-01024.json.gz"
C4_DOCUMENTS = 20_000

ROLES = {"human": "user", "gpt": "assistant"}
"""Role names of the ShareGPT layout."""


def documents(source: str, tokenizer: Any) -> list[str]:
    """The texts of a source, in its own order; chats are rendered with the tokenizer's template.

    Raises:
        CalibrationError: the file or data set cannot be read or holds no text.
        UnknownNameError: no such source.
    """
    if source in NAMED:
        return NAMED[source]()
    path = Path(source)
    if path.suffix not in READERS:
        raise UnknownNameError("calibration source", source, [*NAMED, *(f"FILE{s}" for s in READERS)])
    if not path.is_file():
        raise CalibrationError(
            f"Calibration file {source} does not exist. Give a .txt, .jsonl or .parquet file, or one of "
            f"{', '.join(NAMED)}."
        )
    found = [text for text in READERS[path.suffix](path, tokenizer) if text.strip()]
    if not found:
        raise CalibrationError(f"Calibration file {source} ({path.stat().st_size} bytes) holds no text.")
    return found


def _builtin() -> list[str]:
    return [builtin_text("calibration")]


def _wikitext2() -> list[str]:
    texts = _hub("wikitext2", "Salesforce/wikitext", None, name="wikitext-2-raw-v1", split="train")
    return ["\n\n".join(texts)]


def _c4() -> list[str]:
    return _hub(
        "c4", "allenai/c4", C4_DOCUMENTS, data_files={"train": C4_FILE}, split="train", streaming=True
    )


def _hub(source: str, dataset: str, limit: int | None, **options: Any) -> list[str]:
    """The first `limit` texts of a hub data set."""
    alternatives = "Use --calibration builtin, or a .txt, .jsonl or .parquet file."
    try:
        import datasets
    except ImportError as error:
        raise CalibrationError(
            f"Calibration source {source} needs one more package: pip install 'qdeploy[hub]'. {alternatives}"
        ) from error
    try:
        return [row["text"] for row in islice(datasets.load_dataset(dataset, **options), limit)]
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise CalibrationError(f"Cannot fetch {dataset} for {source}: {error}. {alternatives}") from error


def _text(path: Path, tokenizer: Any) -> Iterator[str]:
    try:
        yield path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CalibrationError(f"Calibration file {path} is not UTF-8 text: {error}.") from error


def _jsonl(path: Path, tokenizer: Any) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _row_text(line, f"{path}, line {number}", tokenizer)


def _row_text(line: str, where: str, tokenizer: Any) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"{where} is not JSON: {error}.") from error
    row = row if isinstance(row, dict) else {}
    if isinstance(row.get("text"), str):
        return str(row["text"])
    messages = row.get("messages") or row.get("conversations")
    if messages:
        return _chat(messages, where, tokenizer)
    raise CalibrationError(
        f'{where} has neither "text" nor "messages" nor "conversations"; it has {list(row)}.'
    )


def _chat(messages: Any, where: str, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise CalibrationError(
            f'{where} is a chat, but the model has no chat template. Use rows with "text".'
        )
    try:
        turns = [_turn(message) for message in messages]
    except (KeyError, TypeError) as error:
        raise CalibrationError(f"{where}: a turn needs role and content (or from and value).") from error
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def _turn(message: dict[str, str]) -> dict[str, str]:
    if "from" in message:
        return {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}
    return {"role": message["role"], "content": message["content"]}


def _parquet(path: Path, tokenizer: Any) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(path, columns=["text"]).column("text").to_pylist()
    except (pyarrow.ArrowException, KeyError) as error:
        raise CalibrationError(f'Cannot read a column "text" from {path}: {error}.') from error


NAMED: dict[str, Callable[[], list[str]]] = {"builtin": _builtin, "wikitext2": _wikitext2, "c4": _c4}
READERS: dict[str, Callable[[Path, Any], Iterator[str]]] = {
    ".txt": _text,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
