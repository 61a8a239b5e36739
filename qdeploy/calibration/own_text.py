"""Text that the 16-bit model writes itself, to calibrate on: one random token each, and what follows from it.

A calibration text shows what the model does with that text alone. What it writes when nothing is asked of it
comes from all that it was trained on, needs no data, and names nobody (LLM-QAT, arXiv 2305.17888, section
3.1, trains on such text). Tokens are drawn from the model's own distribution as it is, with no temperature
and nothing cut off. docs/calibration.md says what it gained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeploy.calibration.packing import default_bos
from qdeploy.calibration.tokenizer import load_tokenizer
from qdeploy.errors import (
    CheckpointError,
    Interrupted,
    OutputError,
    ResourceError,
    UsageError,
    disk_errors,
    is_out_of_memory,
)
from qdeploy.files import read_json, write_json, write_text
from qdeploy.memory import format_size, free_memory
from qdeploy.modeling.checkpoint import CheckpointReader
from qdeploy.modeling.hub import resolve_model
from qdeploy.progress import Task, progress

BATCH = 32
"""Texts that are written together; what is done survives an interruption in such batches."""

ELSEWHERE = (
    "Or let an engine that serves the model write the texts, from one random token each at temperature 1, "
    'and save them as lines of {"text": "..."}.'
)


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
        ResourceError: the model is larger than the memory that is free, or memory ran out on the way.
        UsageError: the model does not read so many tokens.
        Interrupted: Ctrl-C.
    """
    if output.suffix != ".jsonl":
        raise OutputError(f"{output} would not be read as texts, one a line. Name it FILE.jsonl.")
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
    with _resumable(texts, partial, samples):
        _write(folder, asked, texts, partial)
    write_text(output, "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    partial.unlink(missing_ok=True)
    return asked


def _write(folder: Path, asked: Asked, texts: list[str], partial: Path) -> None:
    """Add the texts that are missing, batch by batch."""
    with progress("Writing", asked.samples * (asked.length - 1)) as shown:
        shown.advance(len(texts) * (asked.length - 1))
        author = Author(folder) if len(texts) < asked.samples else None
        while author and len(texts) < asked.samples:
            count = min(BATCH, asked.samples - len(texts))
            texts += author.write(count, asked.length, f"{asked.seed}, {len(texts)}", shown)
            write_json(partial, {"asked": asdict(asked), "texts": texts})


@contextmanager
def _resumable(texts: Sequence[str], partial: Path, samples: int) -> Iterator[None]:
    """Say how to go on after Ctrl-C, and what to do where memory ran out."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f", which are kept in {partial}" if texts else ""
        how = "goes on from there" if texts else "begins again"
        raise Interrupted(
            f"Interrupted after {len(texts)} of {samples} texts{kept}. The same command {how}."
        ) from None
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"Out of memory after {len(texts)} of {samples} texts, of which {BATCH} are written at a time. "
            f"Take a shorter --length. {ELSEWHERE}"
        ) from error


def _refuse_what_cannot_fit(reader: CheckpointReader) -> None:
    needed = 2 * sum(torch.Size(reader.shape(name)).numel() for name in reader.names)
    if not torch.cuda.is_available() and needed > free_memory():
        raise ResourceError(
            f"{reader.folder} takes {format_size(needed)} in 16 bits, and {format_size(free_memory())} of "
            f"memory are free. Use a machine with more. {ELSEWHERE}"
        )


def _earlier(partial: Path, asked: Asked) -> list[str]:
    """Texts that an interrupted call has written.

    Raises:
        OutputError: it asked for something else.
    """
    if not partial.is_file():
        return []
    kept, now = read_json(partial), asdict(asked)
    changed = [f"{what} {was}, now {now[what]}" for what, was in kept["asked"].items() if was != now[what]]
    if changed:
        raise OutputError(
            f"{partial} holds {len(kept['texts'])} texts of an interrupted call that differs: "
            f"{'; '.join(changed)}. Repeat that call, or delete the file."
        )
    return list(kept["texts"])


class Author:
    """The model and its tokenizer.

    Args:
        folder: of the checkpoint.

    Raises:
        CheckpointError: transformers cannot load them.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self._tokenizer = load_tokenizer(folder)
        try:
            self._model: Any = AutoModelForCausalLM.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=torch.bfloat16
            ).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"transformers cannot load the model in {folder}: {reason}") from error
        if torch.cuda.is_available():
            self._model.cuda()

    def write(self, count: int, length: int, seed: str, shown: Task) -> list[str]:
        """Texts of `length` tokens, the same for the same seed."""
        tokens = self.draw(count, length, seed, shown)
        return [self._tokenizer.decode(text, skip_special_tokens=False) for text in tokens]

    def draw(self, count: int, length: int, seed: str, shown: Task) -> Tensor:
        """Tokens int64 [count, length] drawn from the model; a BOS before them is left out.

        Raises:
            UsageError: the model does not read so many.
        """
        chance = random.Random(seed)
        start = self._starts(count, chance).to(self._model.device)
        self._check_length(start.shape[1] + length - 1)
        with torch.random.fork_rng():
            torch.manual_seed(chance.getrandbits(63))
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

    def _check_length(self, tokens: int) -> None:
        most = getattr(self._model.config, "max_position_embeddings", None)
        if most is not None and tokens > most:
            raise UsageError(
                f"The model reads {most} tokens, and each text would take {tokens}. Use --length {most - 1}."
            )

    def _starts(self, count: int, chance: random.Random) -> Tensor:
        """BOS, where the tokenizer puts it before a text, and a random token: int64 [count, 1 or 2]."""
        known = min(len(self._tokenizer), self._model.get_input_embeddings().num_embeddings)
        ordinary = sorted(set(range(known)) - set(self._tokenizer.all_special_ids))
        bos = default_bos(self._tokenizer)
        head = [] if bos is None else [bos]
        return torch.tensor([[*head, chance.choice(ordinary)] for _ in range(count)])
