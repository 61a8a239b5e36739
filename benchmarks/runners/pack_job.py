"""What a packing runner is given and what it answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file


def cases() -> Iterator[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """The fields of each case, its tensors by suffix, and where to put what comes out; saved at the end."""
    job = json.loads(Path(sys.argv[1]).read_text())
    tensors: dict[str, Any] = load_file(job["input"])
    made: dict[str, Any] = {}
    for case in job["cases"]:
        prefix = f"{case['key']}."
        given = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        found: dict[str, Any] = {}
        yield case, given, found
        made |= {prefix + suffix: tensor.contiguous() for suffix, tensor in found.items()}
    save_file(made, job["output"])
