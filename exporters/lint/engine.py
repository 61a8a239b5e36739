"""Rules that exporters share: what an engine does not read."""

from __future__ import annotations

from qdeploy.exporters.lint.rule import rule

NOT_READ = rule(
    "QD612",
    "error",
    "The engine does not read this format, or not all of it",
    """vLLM reads GPTQ folders with symmetric grids of 4 or 8 bits in groups of 32, 64, 128 or whole rows,
    AWQ folders of 4 bits, and ModelOpt's minifloats; TensorRT-LLM's PyTorch backend reads ModelOpt's
    folders alone. The layers may be fine all the same: `qdeploy convert` stores them in another format,
    bit by bit what they were, and `qdeploy export` does so by itself.""",
)
