"""Findings as SARIF 2.1.0 (OASIS), which code hosts show beside a change."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qdeploy import __version__
from qdeploy.exporters.base import Finding
from qdeploy.exporters.lint.rule import RULES, Rule

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"error": "error", "warning": "warning", "info": "note"}


def sarif(folder: Path, findings: Iterable[Finding]) -> dict[str, Any]:
    """A log of one run, with the rules that it applied."""
    driver = {
        "name": "qdeploy lint",
        "version": __version__,
        "rules": [_rule(rule) for rule in sorted(RULES.values(), key=lambda rule: rule.code)],
    }
    results = [_result(folder, finding) for finding in findings]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.page},
        "defaultConfiguration": {"level": LEVELS[rule.level]},
    }


def _result(folder: Path, finding: Finding) -> dict[str, Any]:
    location: dict[str, Any] = {
        "physicalLocation": {"artifactLocation": {"uri": (folder / "config.json").as_posix()}}
    }
    if finding.module:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.module, "kind": "module"}]
    return {
        "ruleId": finding.code,
        "level": LEVELS[finding.severity],
        "message": {"text": str(finding)},
        "locations": [location],
    }
