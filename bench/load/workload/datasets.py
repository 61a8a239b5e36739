"""Prompts from a file: ShareGPT-style conversations, or any JSON lines that hold a prompt."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdeploy.errors import UsageError

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TEXT_KEYS = ("prompt", "question", "instruction", "input", "text")
LENGTH_KEYS = ("output_tokens", "output_length", "max_tokens")

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as recorded; `output_tokens` if the row says how long an answer is to be."""

    messages: tuple[Message, ...]
    output_tokens: int | None = None

    def prompts(self, turns: int) -> list[list[Message]]:
        """What is sent for each of the first `turns` turns: all messages up to and with the user's.

        The answers in between are the recorded ones, not the server's: every variant is asked the same.
        """
        ends = [i + 1 for i, message in enumerate(self.messages) if message["role"] == "user"]
        return [list(self.messages[:end]) for end in ends[:turns]]


def read_dataset(path: Path) -> list[Conversation]:
    """The conversations of a JSON array or of JSON lines, those without a word from the user left out.

    A row holds a list `conversations` (ShareGPT) or `messages` (OpenAI), a list `turns` of which the first
    is used (MT-Bench records no answers), or a text under `prompt`, `question`, `instruction`, `input` or
    `text`. It may set the length of its answers: `output_tokens`, `output_length` or `max_tokens`.

    Raises:
        UsageError: the file cannot be read, a row holds no prompt (its number is named), or none is left.
    """
    try:
        rows = _rows(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(f"--dataset: cannot read {path}: {error}.") from error
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(_conversation(row))
        except (AttributeError, LookupError, StopIteration, TypeError, ValueError) as error:
            raise UsageError(
                f"--dataset: row {number} of {path} holds no prompt ({error!r}). "
                f"Give conversations, messages, turns or one of {', '.join(TEXT_KEYS)}."
            ) from error
    usable = [conversation for conversation in found if conversation.prompts(1)]
    if not usable:
        raise UsageError(f"--dataset: {path} holds no prompt.")
    return usable


def _rows(text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _conversation(row: dict[str, Any]) -> Conversation:
    length = next((int(row[key]) for key in LENGTH_KEYS if row.get(key)), None)
    if "conversations" in row:
        said = [(ROLES[m["from"]], m["value"]) for m in row["conversations"]]
    elif "messages" in row:
        said = [(ROLES[m["role"]], m["content"]) for m in row["messages"]]
    elif "turns" in row:
        said = [("user", row["turns"][0])]
    else:
        said = [("user", next(row[key] for key in TEXT_KEYS if row.get(key)))]
    if not all(isinstance(text, str) for _, text in said):
        raise ValueError("a message that is no text")
    return Conversation(tuple({"role": role, "content": text} for role, text in said), length)
