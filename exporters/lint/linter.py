"""All rules over one folder: headers first, then scales, then codes, as far as each is sound."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

from qdeploy.errors import CheckpointError
from qdeploy.exporters.base import Finding
from qdeploy.exporters.cache import check_cache
from qdeploy.exporters.lint import against, codes, config, folder, fused, scales, tensors
from qdeploy.exporters.lint.subject import Subject
from qdeploy.exporters.targets import Target
from qdeploy.modeling.checkpoint import CheckpointReader


class EngineRules(Protocol):
    """What one engine and device add; exporters have it."""

    def lint(self, subject: Subject, target: Target, tensor_parallel: int) -> Iterator[Finding]: ...


HEADERS = (
    folder.check_config_files,
    tensors.check_names,
    tensors.check_tensors,
    tensors.check_shapes,
    tensors.check_groups,
    tensors.check_tied_head,
    fused.check_fused,
    fused.check_experts,
    config.check_config,
)
SCALES = (
    check_cache,
    scales.check_scales,
    scales.check_zero_points,
    scales.check_order,
    fused.check_divisors,
)


def check_headers(subject: Subject) -> Iterator[Finding]:
    """What headers and configs tell."""
    return chain.from_iterable(check(subject) for check in HEADERS)


def check_scales(subject: Subject) -> Iterator[Finding]:
    """What scales, zero points and column orders tell: a few percent of the bytes."""
    return chain.from_iterable(check(subject) for check in SCALES)


def lint(
    path: Path,
    *,
    deep: bool = False,
    original: CheckpointReader | None = None,
    engine: EngineRules | None = None,
    target: Target | None = None,
    tensor_parallel: int = 1,
) -> list[Finding]:
    """What is wrong with the checkpoint in `path`, whoever made it.

    Args:
        path: its folder.
        deep: read scales and codes too.
        original: the 16-bit model, to compare decoded weights with.
        engine: whose loader and kernels are asked, for the `target`.
        target: device; needed with `engine`.
        tensor_parallel: devices that the model is split over.

    Raises:
        CheckpointError: there is no such folder. What is wrong with one that is there is a finding.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder. Give that of a checkpoint.")
    try:
        return _lint(path, deep, original, engine, target, tensor_parallel)
    except CheckpointError as error:
        return [folder.UNREADABLE(str(error).rstrip("."), "", str(path))]


def _lint(
    path: Path,
    deep: bool,
    original: CheckpointReader | None,
    engine: EngineRules | None,
    target: Target | None,
    tensor_parallel: int,
) -> list[Finding]:
    found = list(folder.check_index(path))
    if found:
        return found
    subject = Subject.open(path)
    # A tokenizer that is missing is no reason not to look further.
    files, found = list(folder.check_files(subject)), list(check_headers(subject))
    if sound(found) and (deep or original):
        found += check_scales(subject)
    if sound(found) and (deep or original):
        found += codes.check_codes(subject)
        found += against.check_against(subject, original) if original else ()
    if sound(found) and engine and target:
        found += engine.lint(subject, target, tensor_parallel)
    return files + found


def sound(found: list[Finding]) -> bool:
    """Whether what comes next means anything."""
    return all(finding.severity != "error" for finding in found)
