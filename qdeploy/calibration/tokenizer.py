"""A checkpoint's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qdeploy.errors import CheckpointError


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of the checkpoint in `folder`.

    Raises:
        CheckpointError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has no tokenizer that transformers can load ({str(error).splitlines()[0]}). "
            "Add the model's tokenizer.json and tokenizer_config.json."
        ) from error
