"""The tools that qdeploy is measured against, and where their environments are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

INSTALL_COMMAND = "python -m benchmarks.peers install"
STAMP = "installed.json"
"""Written last: without it the rest of an environment is made again."""


@dataclass(frozen=True)
class Peer:
    """A tool on PyPI.

    Attributes:
        name: as people call it.
        package, version: as pip calls it.
        runner: script in `runners` that quantizes with it; none where its packing or its client is compared.
        best: its best documented settings for 4 bits that its defaults leave out.
        asymmetric: settings with which grids have zero points.
        beside: packages that it imports and does not ask for.
        environment: variables that it needs.
    """

    name: str
    package: str
    version: str
    runner: str = ""
    best: Mapping[str, object] = field(default_factory=dict)
    asymmetric: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Its environment."""
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(cache).expanduser() / "qdeploy" / "peers" / f"{self.package}-{self.version}"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def installed(self) -> bool:
        return (self.folder / STAMP).exists()


LLM_COMPRESSOR = Peer(
    name="llm-compressor 0.14",
    package="llmcompressor",
    version="0.14.0.1",
    runner="run_llmcompressor.py",
    best={"observer": "imatrix_mse"},
    asymmetric={"symmetric": False},
)
GPTQMODEL = Peer(
    name="GPTQModel 7.7",
    package="gptqmodel",
    version="7.7.0",
    runner="run_gptqmodel.py",
    best={"mse": 2.4},
    asymmetric={"sym": False},
    # Its default of one worker for two cores leaves one of them idle.
    environment={"GPTQMODEL_CPU_WORKERS": "2"},
)
AUTOROUND = Peer(
    name="AutoRound 0.16",
    package="auto-round",
    version="0.16.1",
    runner="run_autoround.py",
    asymmetric={"sym": False},
)
MODELOPT = Peer(
    name="ModelOpt 0.47",
    package="nvidia-modelopt",
    version="0.47.0",
    # Its exporter of whole models is compared on one of transformers' (benchmarks.engine_parity).
    beside=("requests", "huggingface_hub", "transformers==4.57.6"),
)
GUIDELLM = Peer(
    name="guidellm 0.8",
    package="guidellm",
    version="0.8.1",
    # Its HTTP client is compared (benchmarks.client).
)
PEERS = (LLM_COMPRESSOR, GPTQMODEL)
"""Those that do what `gptq` does, and are timed beside it."""
ALL_PEERS = (*PEERS, AUTOROUND)
"""Those that quantize."""
