"""What pydantic found wrong in a file that the user wrote, in the user's words."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: Any) -> str:
    """Findings as `field: what is wrong (got value)`; for a field that `model` lacks, the nearest it has."""
    return "; ".join(
        _finding(model, item["loc"], item["type"], item["msg"], item["input"]) for item in error.errors()
    )


def first(error: ValueError) -> str:
    """The first finding in one line, for a file that a program wrote; other errors of a value as they are."""
    if not isinstance(error, ValidationError):
        return str(error)
    item = error.errors()[0]
    return f"{'.'.join(map(str, item['loc'])) or 'the file'}: {item['msg']}"


def _finding(model: Any, where: Sequence[int | str], kind: str, message: str, value: Any) -> str:
    field = ".".join(map(str, where)) or "the file"
    message = message.removeprefix("Value error, ")
    if kind not in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{field}: {message}" + (f" (got {value!r})" if isinstance(value, str | int | float) else "")
    known = _fields(model, where[:-1])
    near = difflib.get_close_matches(str(where[-1]), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"{field}: no such field.{hint} There are: {', '.join(known)}"


def _fields(model: Any, where: Sequence[int | str]) -> list[str]:
    """Names of the fields of the part of `model` at `where`."""
    for step in where:
        if isinstance(step, str):
            model = _part(model.model_fields[step].annotation)
    return list(model.model_fields if issubclass(model, BaseModel) else model.__dataclass_fields__)


def _part(annotation: Any) -> Any:
    """The model or dataclass inside an annotation such as `tuple[Part, ...]` or `Part | None`."""
    inner = [_part(argument) for argument in get_args(annotation) if isinstance(argument, type)]
    return inner[0] if inner else annotation
