"""Files of a checkpoint folder: whole, of one version, and all that an engine looks for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from qdeploy.exporters.base import Finding
from qdeploy.exporters.lint.rule import rule
from qdeploy.exporters.lint.subject import Subject
from qdeploy.files import read_json
from qdeploy.formats import modelopt_config
from qdeploy.modeling.checkpoint import INDEX

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")

UNREADABLE = rule(
    "QD101",
    "error",
    "The folder cannot be read",
    """config.json, the index or a weight file is missing, cut off or damaged, the quantization is of a kind
    that is not known, or the architecture is none of transformers'. Nothing else can be checked. Files
    that were cut off while they were downloaded are the usual cause: download them again.""",
)
INDEX_DISAGREES = rule(
    "QD102",
    "error",
    "Index and weight files disagree",
    f"""`{INDEX}` says which file holds which tensor. transformers loads what it lists and nothing else; vLLM
    reads whole files. Where the two differ, one engine gets a tensor that the other does not, or neither
    finds it.""",
)
NO_TOKENIZER = rule(
    "QD103",
    "error",
    "No tokenizer",
    "Engines start with a tokenizer or not at all. Copy its files from the original model.",
)
NO_TOKENIZER_CONFIG = rule(
    "QD104",
    "warning",
    "No tokenizer_config.json",
    """Special tokens and, in older models, the chat template are in it. Without them prompts are other
    token ids than the model was trained with, and answers are worse without any error.""",
)
CONFIGS_DISAGREE = rule(
    "QD105",
    "error",
    "Two files describe the quantization differently",
    """`quantization_config` of config.json and the file that older tools keep beside it
    (`quantize_config.json`, `hf_quant_config.json`). GPTQModel and TensorRT-LLM follow the file, vLLM
    and transformers config.json.""",
)
ONE_OF_TWO = rule(
    "QD106",
    "warning",
    "One of ModelOpt's two JSON files is missing",
    """vLLM follows `quantization_config` of config.json, TensorRT-LLM `hf_quant_config.json`; group sizes
    are often in the second alone.""",
)

COMPARED = {
    "quantize_config.json": ("bits", "group_size", "sym", "desc_act", "checkpoint_format"),
    modelopt_config.FILE: ("quant_algo", "group_size"),
}
"""File beside config.json → fields that both may have."""


def check_index(folder: Path) -> Iterator[Finding]:
    """The index lists what the weight files hold, file by file; a broken one is for the reader to tell."""
    try:
        listed = {str(name): str(file) for name, file in read_json(folder / INDEX)["weight_map"].items()}
        held = {file: _names(folder / file) for file in set(listed.values()) if (folder / file).is_file()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):
        return
    for file, names in sorted(held.items()):
        wanted = {name for name, place in listed.items() if place == file}
        for problem, found in (
            ("lists for it, but it does not hold", wanted - names),
            ("does not list for it", names - wanted),
        ):
            if found:
                yield INDEX_DISAGREES(
                    f"{INDEX} {problem}: {len(found)} tensors, the first {min(found)}",
                    "Make the index anew, or download index and weight files of one version",
                    file,
                )


def _names(file: Path) -> set[str]:
    with safe_open(file, framework="pt") as opened:
        return set(opened.keys())


def check_files(subject: Subject) -> Iterator[Finding]:
    """A tokenizer must be there, with its config."""
    folder = subject.reader.folder
    names = {path.name for path in folder.iterdir()}
    if not names & set(TOKENIZERS):
        yield NO_TOKENIZER(
            f"has no tokenizer (none of {', '.join(TOKENIZERS)})",
            "Copy the tokenizer files of the original model into it",
            str(folder),
        )
    elif "tokenizer_config.json" not in names:
        yield NO_TOKENIZER_CONFIG(
            "has no tokenizer_config.json, so special tokens and chat template may be lost",
            "Copy it from the original model",
            str(folder),
        )


def check_config_files(subject: Subject) -> Iterator[Finding]:
    """config.json and what older tools keep beside it say the same."""
    folder, block = subject.reader.folder, subject.reader.config.get("quantization_config")
    for name, fields in COMPARED.items():
        beside = _beside(folder / name)
        if beside is None or block is None:
            continue
        for field in fields:
            here, there = block.get(field), beside.get(field)
            if None not in (here, there) and here != there:
                yield CONFIGS_DISAGREE(
                    f"{field} is {there!r} in {name}, but {here!r} in config.json",
                    "Make them equal to what the tensors are",
                    name,
                )
    if subject.format == "modelopt" and (block is None) != (_beside(folder / modelopt_config.FILE) is None):
        missing = "config.json has no quantization_config" if block is None else f"no {modelopt_config.FILE}"
        yield ONE_OF_TWO(
            f"{missing}: " + ("vLLM reads few algorithms then" if block is None else "TensorRT-LLM wants it"),
            "Write it from the other one",
            str(folder),
        )


def _beside(path: Path) -> Mapping[str, Any] | None:
    """The object in it; None where there is none that can be read."""
    if not path.is_file():
        return None
    try:
        found = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(found, dict):
        return None
    inner = found.get("quantization", found)
    return inner if isinstance(inner, dict) else None
