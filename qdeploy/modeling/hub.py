"""From what the user typed to a model folder."""

from __future__ import annotations

import os
from pathlib import Path

from qdeploy.errors import CheckpointError

FILES = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "README.md"]
"""What is downloaded: weights, config, tokenizer and card; never pickles."""


def resolve_model(model: str) -> Path:
    """The local folder `model`, or the hub model of that id, downloaded or taken from the cache.

    Raises:
        CheckpointError: neither a folder nor a model that the hub will give.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.suffix == ".gguf":
        raise CheckpointError(
            f"{model} is a GGUF file. Turn it into a folder first: qdeploy import {model} -o DIR"
        )
    if path.exists() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise CheckpointError(f"{model!r} is neither a model folder nor a hub id of the form org/name.")
    return _download(model)


def _download(model: str) -> Path:
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(model, allow_patterns=FILES))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{model} is gated. Accept its terms on its hub page and set HF_TOKEN to your token."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(f"No local folder {model!r}, and the hub has no model of that name.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, OSError) as error:
        reason = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the hub cannot be reached"
        raise CheckpointError(
            f"No local folder {model!r}, it is not in the hub cache, and {reason}. "
            "Give a local folder, or run again with network access."
        ) from error
