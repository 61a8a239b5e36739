"""Text to token ids, as the served model's own tokenizer does it, BOS policy included."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from qdeploy.engines.endpoint import Endpoint
from qdeploy.errors import UsageError


@dataclass(frozen=True)
class Encoder:
    """A tokenizer with its policy made explicit.

    Attributes:
        tokenizer: a transformers tokenizer.
        bos: the ids that it puts before every text by default; often none.
        prefix: the id that stands for an empty context: BOS, else EOS (lm-eval's rule).
    """

    tokenizer: Any
    bos: tuple[int, ...]
    prefix: int

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of `text`, after BOS where the tokenizer adds one; never with EOS."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return [*self.bos, *ids] if bos else ids

    @cached_property
    def sha256(self) -> str:
        """Hash of the vocabulary and the BOS policy: two runs are comparable only where it agrees."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(json.dumps([vocabulary, self.bos]).encode()).hexdigest()

    @property
    def bos_policy(self) -> str:
        """The policy in words, for the record."""
        return f"token {' '.join(map(str, self.bos))} once at the start" if self.bos else "none"


def encoder_of(tokenizer: Any) -> Encoder:
    """Find out which ids the tokenizer prepends, and which one stands for an empty context."""
    bare: list[int] = tokenizer("a", add_special_tokens=False).input_ids
    full: list[int] = tokenizer("a").input_ids
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        raise UsageError("The tokenizer has neither a BOS nor an EOS token, so an empty context has no form.")
    return Encoder(tokenizer, tuple(full[:start]), prefix)


def load_encoder(endpoint: Endpoint, folder: Path | None) -> Encoder:
    """The tokenizer in `folder`, or in the local folder that the server says it serves.

    Raises:
        UsageError: no folder is given or known, or it holds no tokenizer.
    """
    from transformers import AutoTokenizer

    folder = folder or served_folder(endpoint)
    if folder is None:
        raise UsageError(
            f"{endpoint.base_url} does not tell which local folder it serves, so there is no tokenizer. "
            "Give the model's folder: --tokenizer DIR."
        )
    if not (folder / "tokenizer_config.json").is_file():
        raise UsageError(
            f"--tokenizer {folder}: no tokenizer_config.json in it. Give the model's folder or one with its "
            "tokenizer files."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"--tokenizer {folder}: the tokenizer cannot be read: {error}") from error
    return encoder_of(tokenizer)


def served_folder(endpoint: Endpoint) -> Path | None:
    """The local checkpoint folder behind the endpoint, from the `root` that vLLM's /v1/models tells."""
    folder = Path(endpoint.root) if endpoint.root else None
    return folder if folder and folder.is_dir() else None
