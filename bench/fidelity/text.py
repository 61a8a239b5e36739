"""The text that fidelity is measured on: a protocol's, a file's, or the built-in one."""

from __future__ import annotations

from pathlib import Path

from qdeploy.bench.fidelity.corpora import load_rows
from qdeploy.bench.fidelity.protocols import PROTOCOLS, Protocol
from qdeploy.bench.fidelity.windows import Windows, stream
from qdeploy.bench.tokenizer import Encoder
from qdeploy.calibration.builtin import evaluation_text
from qdeploy.errors import UsageError
from qdeploy.files import sha256_text

WINDOWS, WINDOW_TOKENS = 32, 512
"""How much of a text that is no protocol's."""


def load_windows(
    source: str,
    encoder: Encoder,
    count: int | None = None,
    length: int | None = None,
    *,
    folder: Path | None = None,
    max_model_len: int | None = None,
) -> Windows:
    """The first `count` windows of `length` tokens of a text.

    Args:
        source: name of a protocol, a text file, or "builtin".
        count, length: None: as the protocol says; WINDOWS windows of WINDOW_TOKENS where there is none.
        folder: where the texts of protocols may lie.
        max_model_len: the served context; a protocol's own windows are cut down to what fits it.

    Raises:
        UsageError: the text cannot be read, or is too short.
    """
    if (count or 1) < 1 or (length or 2) < 2:
        raise UsageError(
            f"--windows {count} --window-tokens {length}: at least 1 window of 2 tokens is needed."
        )
    if source in PROTOCOLS:
        fitting = min(PROTOCOLS[source].length, (max_model_len or PROTOCOLS[source].length + 1) - 1)
        return _by_protocol(PROTOCOLS[source], encoder, count, length or fitting, folder)
    text = evaluation_text() if source == "builtin" else _read(Path(source))
    return _first(source, text, encoder, count or WINDOWS, length or WINDOW_TOKENS)


def _by_protocol(
    protocol: Protocol, encoder: Encoder, count: int | None, length: int, folder: Path | None
) -> Windows:
    source, rows = load_rows(protocol.corpus, folder)
    cut = protocol.cut(rows, encoder, length)
    total = len(cut.tokens)
    count = min(count or total, total)
    if not count:
        raise UsageError(f"--text {protocol.name}: {source} is shorter than one window of {length} tokens.")
    return Windows(
        source=source,
        text_sha256=sha256_text(cut.text),
        tokens=cut.tokens[:count],
        starts=cut.starts[:count],
        protocol=protocol.label(length, count, total),
        documents=cut.documents if count == total else None,
    )


def _first(source: str, text: str, encoder: Encoder, count: int, length: int) -> Windows:
    tokens = stream(text, encoder, length).tokens
    if len(tokens) < count:
        size = len(encoder.encode(text))
        hint = f"Use --windows {len(tokens)}" if tokens else f"Use --window-tokens {size} --windows 1"
        raise UsageError(
            f"--text {source} has {size} tokens; {count} windows of {length} need {count * length}. "
            f"{hint} or a longer text."
        )
    return Windows(source, sha256_text(text), tokens[:count])


def _read(path: Path) -> str:
    if path.suffix in (".json", ".jsonl", ".parquet", ".gz"):
        raise UsageError(
            f"--text {path}: only plain text is read, not {path.suffix}. Write it as a .txt file."
        )
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--text {path} cannot be read: {error.strerror}. It is no protocol either: "
            f"{', '.join(PROTOCOLS)}."
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {path} is not UTF-8 text: {error}.") from error
