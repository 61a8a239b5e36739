"""What a runner is asked for and what it answers: the two JSON files that a peer's process shares with ours.

Runners are scripts for the interpreter of a peer's environment, where qdeploy is not installed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


class Job:
    """The job named on the command line.

    Attributes:
        model: folder of the 16-bit model.
        tokens: token ids, one list of T for each of S samples.
        group_size: columns that share a scale.
        settings: what differs from the tool's defaults.
        output: folder to save the quantized model in.
    """

    def __init__(self) -> None:
        fields: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
        self.model: str = fields["model"]
        self.tokens: list[list[int]] = np.load(fields["tokens"]).tolist()
        self.group_size: int = fields["group_size"]
        self.settings: dict[str, Any] = fields["settings"]
        self.output: str = fields["output"]
        self._report = Path(fields["report"])

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Report the seconds that the block took."""
        start = time.perf_counter()
        yield
        self._report.write_text(json.dumps({"seconds": time.perf_counter() - start}))
