"""Text that the 16-bit model writes itself, to calibrate on: one random token each, and what follows from it.

A calibration text shows what the model does with that text alone. What it writes when nothing is asked of it
comes from all that it was trained on, needs no data, and names nobody (LLM-QAT, arXiv 2305.17888, section
3.1, trains on such text). Tokens are drawn from the model's own distribution as it is, with no temperature
and nothing cut off. docs/calibration.md says what it gained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeploy.calibration.packing import default_bos
from qdeploy.errors import CheckpointError, OutputError, ResourceError, disk_errors
from qdeploy.files import read_json, write_json, write_text
from qdeploy.memory import format_size, free_memory
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.hub import resolve_model
from qdeploy.progress import Task, progress

BATCH = 32
"""Texts that are written together; what is done survives an interruption in such batches."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be written.

    Attributes:
        model: sha256 of the checkpoint.
        samples: how many texts.
        length: tokens of each, the first one included.
        seed: chooses first tokens, and those after them.
    """

    model: str
    samples: int
    length: int
    seed: int


def write_own_text(model: str, output: Path, *, samples: int, length: int, seed: int) -> Asked:
    """Let the model write `samples` texts of `length` tokens into the JSON lines file `output`.

    The whole model is in memory in bfloat16 meanwhile. Texts so far are kept in `OUTPUT.partial`, and the
    same call goes on from there.

    Raises:
        CheckpointError: the model or its tokenizer cannot be loaded.
        OutputError: `output` exists, or an interrupted call asked for something else.
        ResourceError: the model is larger than the memory that is free.
    """
    if output.suffix != ".jsonl":
        raise OutputError(f"{output} is read as {output.suffix or 'no format'}; name it FILE.jsonl.")
    if output.exists():
        raise OutputError(f"{output} exists already. Give another file with -o, or delete it.")
    folder = resolve_model(model)
    reader = CheckpointReader(folder)
    _refuse_what_cannot_fit(reader)
    asked = Asked(reader.sha256, samples, length, seed)
    with disk_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(output.name + ".partial")
    texts = _earlier(partial, asked)
    with progress("Writing", samples * (length - 1)) as shown:
        shown.advance(len(texts) * (length - 1))
        if len(texts) < samples:
            author = Author(folder)
            for batch in range(len(texts), samples, BATCH):
                texts += author.write(min(BATCH, samples - batch), length, seed + batch, shown)
                write_json(partial, {"asked": asdict(asked), "texts": texts})
    write_text(output, "".join(_lines(texts)))
    partial.unlink(missing_ok=True)
    return asked


def _refuse_what_cannot_fit(reader: CheckpointReader) -> None:
    needed = 2 * sum(torch.Size(reader.shape(name)).numel() for name in reader.names)
    if not torch.cuda.is_available() and needed > free_memory():
        raise ResourceError(
            f"{reader.folder} takes {format_size(needed)} in 16 bits, and {format_size(free_memory())} of "
            "memory are free. Let an engine that serves it write the texts, from one random token each at "
            'temperature 1, and save them as lines of {"text": "..."}.'
        )


def _earlier(partial: Path, asked: Asked) -> list[str]:
    """Texts that an interrupted call has written.

    Raises:
        OutputError: it asked for something else.
    """
    if not partial.is_file():
        return []
    kept = read_json(partial)
    if kept["asked"] != asdict(asked):
        raise OutputError(
            f"{partial} holds {len(kept['texts'])} texts of a call that asked for {kept['asked']}, not "
            f"{asdict(asked)}. Repeat that call, or delete the file."
        )
    return list(kept["texts"])


def _lines(texts: list[str]) -> Iterator[str]:
    for text in texts:
        yield json.dumps({"text": text}, ensure_ascii=False) + "\n"


class Author:
    """The model and its tokenizer.

    Args:
        folder: of the checkpoint.

    Raises:
        CheckpointError: transformers cannot load them.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=torch.bfloat16
            ).eval()
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"transformers cannot load {folder}: {reason}") from error
        if torch.cuda.is_available():
            self._model.cuda()

    def write(self, count: int, length: int, seed: int, shown: Task) -> list[str]:
        """Texts of `length` tokens, the same for the same seed."""
        tokens = self.draw(count, length, seed, shown)
        return [self._tokenizer.decode(text, skip_special_tokens=False) for text in tokens]

    def draw(self, count: int, length: int, seed: int, shown: Task) -> Tensor:
        """Tokens int64 [count, length] drawn from the model; a BOS before them is left out."""
        start = self._starts(count, seed).to(self._model.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tokens: Tensor = self._model.generate(
                start,
                attention_mask=torch.ones_like(start),
                max_new_tokens=length - 1,
                min_new_tokens=length - 1,
                do_sample=True,
                top_k=0,
                top_p=1.0,
                temperature=1.0,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[lambda found, _: self._counted(found, shown)],
            )
        return tokens[:, start.shape[1] - 1 :]

    @staticmethod
    def _counted(found: Tensor, shown: Task) -> Tensor:
        """Tell how far it is; no text ends before its length."""
        shown.advance(len(found))
        return torch.zeros(len(found), dtype=torch.bool, device=found.device)

    def _starts(self, count: int, seed: int) -> Tensor:
        """BOS, where the tokenizer puts it before a text, and a random token: int64 [count, 1 or 2]."""
        known = min(len(self._tokenizer), self._model.get_input_embeddings().num_embeddings)
        ordinary = sorted(set(range(known)) - set(self._tokenizer.all_special_ids))
        chance, bos = random.Random(seed), default_bos(self._tokenizer)
        head = [] if bos is None else [bos]
        return torch.tensor([[*head, chance.choice(ordinary)] for _ in range(count)])
