"""What rules say of themselves, as a document: `python -m qdeploy.exporters.lint.pages > docs/lint.md`."""

from __future__ import annotations

from qdeploy.exporters import cache, parallel, reference, tensorrt_llm, vllm  # noqa: F401
from qdeploy.exporters.lint import linter  # noqa: F401
from qdeploy.exporters.lint.rule import RULES, Rule

HEAD = """\
# What `qdeploy lint` finds

```
qdeploy lint ./some-model-gptq
qdeploy lint ./some-model-gptq --deep --against ./some-model
qdeploy lint ./some-model-gptq --engine vllm --gpu h100 --tensor-parallel 2
```

works on any folder that can be read, by any tool: compressed-tensors, GPTQ, AWQ, ModelOpt, fp8, or 16 bits.
It reads headers and configs; with `--deep` scales, then codes; with `--against` it compares decoded weights
with the 16-bit model's. What comes later is looked at only where what comes before has no error. `--json`
and `--sarif` are for machines, the exit code is 1 if there is an error. `qdeploy lint --explain QD205`
prints one of the pages below; `qdeploy export` applies the same rules, all but those that decode layers.
"""
CHAPTERS = {
    "1": "Folder and files",
    "2": "Tensors",
    "3": "Values",
    "4": "Config",
    "5": "Layers that run as one",
    "6": "Engine and device",
}


def page(rule: Rule) -> str:
    """One rule's page."""
    return f"### {rule.code}: {rule.title}\n\n*{rule.level}* – {rule.page}\n"


def document() -> str:
    """All of them, by code."""
    parts = [HEAD]
    for digit, title in CHAPTERS.items():
        rules = sorted((r for r in RULES.values() if r.code[2] == digit), key=lambda rule: rule.code)
        parts += [f"## {title}\n", *map(page, rules)]
    return "\n".join(parts)


if __name__ == "__main__":
    print(document(), end="")
