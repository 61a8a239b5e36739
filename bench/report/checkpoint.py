"""What a model folder says about itself: size, shape, how it was quantized."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdeploy.checkpoint.manifest import Manifest, load_manifest
from qdeploy.files import read_json

WORST = 6


@dataclass(frozen=True)
class ModuleError:
    """Relative output error of one quantized linear layer; `block` is None outside the decoder stack."""

    name: str
    block: int | None
    kind: str
    error: float


@dataclass(frozen=True)
class Checkpoint:
    """A model folder as far as it can be read."""

    path: Path
    weight_bytes: int
    config: dict[str, Any] = field(default_factory=dict)
    manifest: Manifest | None = None

    @property
    def model(self) -> str:
        """The name of the 16-bit model, without its folder."""
        return Path(self.manifest.model.source if self.manifest else self.path).name

    @property
    def module_errors(self) -> list[ModuleError]:
        """The layers whose error the manifest holds, in the order of the walk."""
        modules = self.manifest.modules if self.manifest else []
        return [_module_error(m.name, m.relative_error) for m in modules if m.relative_error is not None]

    @property
    def worst_modules(self) -> list[ModuleError]:
        """The layers that lost most, worst first."""
        return sorted(self.module_errors, key=lambda module: -module.error)[:WORST]

    @property
    def fallbacks(self) -> dict[str, str]:
        """Layers for which a simpler method had to do, and why."""
        modules = self.manifest.modules if self.manifest else []
        return {m.name: m.fallback for m in modules if m.fallback}

    @property
    def cache_bytes_per_token(self) -> int | None:
        """Key-value cache of one token at 16 bit, bytes, from the shapes in config.json."""
        text = self.config.get("text_config", self.config)
        try:
            layers, heads = text["num_hidden_layers"], text["num_attention_heads"]
            width = text.get("head_dim") or text["hidden_size"] // heads
        except KeyError:
            return None
        return int(2 * 2 * layers * (text.get("num_key_value_heads") or heads) * width)

    def describe(self) -> str:
        """One line for people, e.g. "210 layers W4A16 symmetric, group 64 by gptq"."""
        if self.manifest is None:
            return "not quantized by qdeploy"
        kinds = Counter((m.scheme, m.method) for m in self.manifest.modules)
        parts = [f"{n} layers {scheme} by {method}" for (scheme, method), n in kinds.most_common()]
        return "; ".join(parts) or "no layer quantized"


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The folder's facts, None where it is gone: a report outlives the weights it is about.

    Raises:
        CheckpointError: its qdeploy.json is broken.
    """
    if not path.is_dir():
        return None
    config = path / "config.json"
    return Checkpoint(
        path=path,
        weight_bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
        config=read_json(config) if config.is_file() else {},
        manifest=load_manifest(path),
    )


def _module_error(name: str, error: float) -> ModuleError:
    match = re.search(r"\.(\d+)\.(.+)$", name)
    block, kind = (int(match[1]), match[2].rpartition(".")[2]) if match else (None, name)
    return ModuleError(name, block, kind, error)
