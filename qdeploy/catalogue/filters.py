"""What a user asks the catalogue for, in words, as what it can look up."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from qdeploy.catalogue.entry import KINDS, Entry
from qdeploy.catalogue.store import Catalogue, Filter
from qdeploy.errors import UnknownNameError, UsageError

AGE = re.compile(r"(\d+)([mhdw])")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def wanted(kind: str | None, model: str | None, since: str | None, tags: Sequence[str]) -> Filter:
    """The filter that the options mean.

    Raises:
        UnknownNameError: no such kind.
        UsageError: `since` is neither a date nor an age.
    """
    if kind is not None and kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    return Filter(kind, model, None if since is None else _time(since), tuple(tags))


def _time(text: str) -> str:
    age = AGE.fullmatch(text)
    try:
        if age:
            then = datetime.now(UTC) - timedelta(**{UNITS[age[2]]: int(age[1])})
        else:
            then = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):  # the latter from before the calendar begins
        raise UsageError(
            f"--since {text!r} is neither a date such as 2026-01-31 nor an age such as 7d, 12h or 30m."
        ) from None
    return then.isoformat(timespec="seconds")


def chosen(catalogue: Catalogue, name: str) -> Entry:
    """The one run with this id (or its beginning), path or name.

    Raises:
        UsageError: there is none, or there are several.
    """
    entries = catalogue.find()
    path = Path(name).resolve()
    found = [entry for entry in entries if entry.path == path]
    found = found or [entry for entry in entries if len(name) >= 4 and entry.identity.startswith(name)]
    found = found or [entry for entry in entries if entry.name == name]
    if len(found) == 1:
        return found[0]
    if found:
        places = ", ".join(f"{entry.short} ({entry.path})" for entry in found[:5])
        raise UsageError(f"{name!r} is {len(found)} runs: {places}. Give the id or the path of one.")
    near = difflib.get_close_matches(name, [entry.name for entry in entries], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"No run {name!r} in {catalogue.path}.{hint} `qdeploy runs scan FOLDER` enters what is missing."
    )
