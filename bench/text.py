"""The text that fidelity is measured on, cut into windows of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qdeploy.bench.tokenizer import Encoder
from qdeploy.calibration.builtin import evaluation_text
from qdeploy.errors import UsageError
from qdeploy.files import sha256_text


@dataclass(frozen=True)
class Windows:
    """Non-overlapping windows from the start of a text, all of one length; the tail is dropped.

    This is the perplexity protocol of the GPTQ papers: the text is one stream, with BOS (where the tokenizer
    adds one) only at the stream's start.
    """

    source: str
    text_sha256: str
    tokens: list[list[int]]


def load_windows(source: str, encoder: Encoder, count: int, length: int) -> Windows:
    """The first `count` windows of `length` tokens of a text file, or of the built-in text ("builtin").

    Raises:
        UsageError: the file cannot be read, or the text is too short.
    """
    if count < 1 or length < 2:
        raise UsageError(
            f"--windows {count} --window-tokens {length}: at least 1 window of 2 tokens is needed."
        )
    text = evaluation_text() if source == "builtin" else _read(Path(source))
    stream = encoder.encode(text)
    found = len(stream) // length
    if found < count:
        hint = f"Use --windows {found}" if found else f"Use --window-tokens {len(stream)} --windows 1"
        raise UsageError(
            f"--text {source} has {len(stream)} tokens; {count} windows of {length} need {count * length}. "
            f"{hint} or a longer text."
        )
    tokens = [stream[i * length : (i + 1) * length] for i in range(count)]
    return Windows(source, sha256_text(text), tokens)


def _read(path: Path) -> str:
    if path.suffix in (".json", ".jsonl", ".parquet", ".gz"):
        raise UsageError(
            f"--text {path}: only plain text is read, not {path.suffix}. Write it as a .txt file."
        )
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--text {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {path} is not UTF-8 text: {error}.") from error
