"""Conversations, rendered as the model reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qdeploy.errors import CalibrationError

ROLES = {"human": "user", "gpt": "assistant"}
"""Role names of the ShareGPT layout."""


@dataclass(frozen=True, slots=True)
class Chat:
    """Turns with role and content, and the place they come from, for messages."""

    turns: list[dict[str, str]]
    where: str

    @classmethod
    def parse(cls, messages: Any, where: str) -> Chat:
        """Take `role`/`content` turns, or ShareGPT's `from`/`value`.

        Raises:
            CalibrationError: a turn has neither.
        """
        try:
            return cls([_turn(message) for message in messages], where)
        except (KeyError, TypeError) as error:
            raise CalibrationError(f"{where}: a turn needs role and content (or from and value).") from error

    def render(self, tokenizer: Any) -> str:
        """The text that the tokenizer's chat template makes of the turns.

        Raises:
            CalibrationError: the tokenizer has no template, or the template refuses the turns.
        """
        import jinja2

        if not getattr(tokenizer, "chat_template", None):
            raise CalibrationError(
                f'{self.where} is a chat, but the model has no chat template. Use rows with "text".'
            )
        try:
            return str(tokenizer.apply_chat_template(self.turns, tokenize=False))
        except jinja2.TemplateError as error:
            raise CalibrationError(f"{self.where}: the model's chat template refuses it: {error}.") from error


def _turn(message: dict[str, str]) -> dict[str, str]:
    if "from" in message:
        return {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}
    return {"role": message["role"], "content": message["content"]}
