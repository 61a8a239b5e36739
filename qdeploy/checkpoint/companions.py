"""The files of a checkpoint that are neither weights nor configuration: tokenizer, templates, licence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

# An allow-list: checkpoint folders also hold pickles and Python code, which must never spread.
SUFFIXES = {".json", ".txt", ".model", ".tiktoken", ".jinja"}
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
WRITTEN = {
    "config.json",
    "qdeploy.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "export.json",
    "engine_args.json",
}
"""Files that describe the weights or how they are served: they are written anew, never copied."""


def companions(folder: Path) -> Iterator[Path]:
    """Files to carry over from `folder` to a checkpoint that is derived from it."""
    for path in sorted(folder.iterdir()):
        weights = path.name in WRITTEN or path.name.endswith(".index.json")
        wanted = path.suffix in SUFFIXES or path.name.upper().startswith(LEGAL)
        if path.is_file() and wanted and not weights and not path.name.startswith("."):
            yield path
    yield from sorted(folder.glob("additional_chat_templates/*.jinja"))


def copy_companions(source: Path, target: Path) -> None:
    """Copy the companions of `source` to the same places under `target`."""
    for path in companions(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
