"""What makes two runs incomparable: figures that answer different questions are not set side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdeploy.bench.accuracy.scoring import ItemScore
from qdeploy.bench.compare.sides import Run
from qdeploy.errors import ComparisonError

Items = Mapping[tuple[str, str], ItemScore]

TOKENS = {"tokenizer_sha256": "tokenizer (SHA-256)", "bos": "BOS policy"}
TEXT = {
    "text_sha256": "text (SHA-256)",
    "protocol": "protocol",
    "windows": "windows",
    "window_tokens": "tokens a window",
    "positions": "scored tokens",
    "top_k": "K (--top-k)",
}
"""Fields of an evaluation that must agree, with their names for people."""
FREE = {"requests", "seed", "salt", "warmup", "timeout_s"}
"""Settings of a load that may differ: they change how sure a figure is, not what it means."""


def check_same_questions(base: Run, candidate: Run) -> None:
    """Refuse evaluations by another tokenizer or of another text.

    Raises:
        ComparisonError: names all that differs.
    """
    _refuse(base, candidate, _different(base.record.settings, candidate.record.settings, TOKENS))
    theirs, ours = base.record.fidelity, candidate.record.fidelity
    if theirs and ours:
        _refuse(base, candidate, _different(theirs.model_dump(), ours.model_dump(), TEXT))


def check_same_items(base: Run, candidate: Run, theirs: Items, ours: Items) -> None:
    """Refuse evaluations with other items or prompts; a candidate that was sampled may have fewer.

    Raises:
        ComparisonError: how many differ, and one of them.
    """
    sampled = {score.task for score in candidate.record.tasks if score.looks}
    missing = sorted(ours.keys() - theirs.keys())
    extra = sorted(key for key in theirs.keys() - ours.keys() if key[0] not in sampled)
    changed = sorted(k for k in ours.keys() & theirs.keys() if ours[k].prompt_hash != theirs[k].prompt_hash)
    found = [
        f"{len(keys)} items {words}, such as {keys[0][1]!r} of {keys[0][0]}"
        for keys, words in (
            (changed, "have another prompt (token ids)"),
            (missing, "are in the candidate only"),
            (extra, "are in the baseline only"),
        )
        if keys
    ]
    _refuse(base, candidate, found)


def check_same_load(base: Run, candidate: Run) -> None:
    """Refuse load runs with another load.

    Raises:
        ComparisonError: names all that differs.
    """
    theirs, ours = base.record.settings, candidate.record.settings
    names = {key: key for key in sorted((theirs.keys() | ours.keys()) - FREE)}
    _refuse(base, candidate, _different(theirs, ours, names))


def _different(theirs: Mapping[str, Any], ours: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    pairs = [(name, theirs.get(key), ours.get(key)) for key, name in names.items()]
    return [f"{name} {was} there, {now} here" for name, was, now in pairs if was != now]


def _refuse(base: Run, candidate: Run, found: list[str]) -> None:
    if found:
        raise ComparisonError(
            f"{candidate.folder} cannot be compared with {base.folder}: {'; '.join(found)}. "
            "Run both with the same settings."
        )
