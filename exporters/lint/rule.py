"""Rules: what the linter can find, under a code that stays what it is from release to release."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.exporters.base import Finding, Severity


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of finding; calling it makes one.

    Attributes:
        code: "QD" and three digits. The first says what it is about: 1 folder and files, 2 tensors, 3 values,
            4 config, 5 layers that run as one, 6 engine and device.
        level: of each of its findings.
        title: what is the case, in a line.
        page: why it matters and what to do, a paragraph.
    """

    code: str
    level: Severity
    title: str
    page: str

    def __call__(self, problem: str, fix: str = "", module: str | None = None) -> Finding:
        return Finding(self.level, problem, fix, module, self.code)


RULES: dict[str, Rule] = {}
"""Code → rule, for all modules that were imported; `linter` imports every one of them."""


def rule(code: str, level: Severity, title: str, page: str) -> Rule:
    """A new rule, known by its code.

    Raises:
        ValueError: the code is taken.
    """
    if code in RULES:
        raise ValueError(f"{code} is {RULES[code].title!r}")
    RULES[code] = Rule(code, level, title, " ".join(page.split()))
    return RULES[code]
