"""One quantizing run of one tool, in a fresh process, on tokens that all tools get alike."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks import process, texts
from benchmarks.peer import Peer
from benchmarks.process import ProcessError, Usage
from qdeploy.calibration import load
from qdeploy.calibration.tokenizer import load_tokenizer
from qdeploy.files import read_json, write_json, write_text
from qdeploy.recipe import CalibrationConfig, Recipe
from qdeploy.schemes import preset

GROUP_SIZE = 64
SAMPLES = 32
PLAIN = {"gptq": {"correction": 0.0, "passes": 0}}
"""Settings with which our GPTQ leaves out what the peers' have not: correction and descent."""
Settings = Mapping[str, Mapping[str, object]]
"""Stage → what is not its default."""
RUNNERS = Path(__file__).parent / "runners"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the quantized model.
        seconds: quantizing alone. Ours includes loading, packing and writing, the peers' does not.
        process: the whole process, with interpreter and libraries.
        split: part → seconds; ours only.
    """

    folder: Path
    seconds: float
    process: Usage
    split: dict[str, float] = field(default_factory=dict)


class Calibration:
    """The same tokens, as texts for us and as ids for the peers; `folder` keeps both.

    Args:
        model: whose tokenizer makes them.
        samples: of the documentation.
        folder: to keep them in.
        length: tokens of each.
        own: file of texts that the model has written, and how many of its samples are added.
    """

    def __init__(
        self,
        model: Path,
        samples: int,
        folder: Path,
        length: int = texts.SEQUENCE_LENGTH,
        own: tuple[Path, int] | None = None,
    ) -> None:
        self.model = model
        text, tokens = texts.calibration(model, samples, length)
        folder.mkdir(parents=True, exist_ok=True)
        self.text, self.ids = folder / "calibration.txt", folder / "tokens.npy"
        write_text(self.text, text)
        sources = [f"{self.text.resolve()}@{samples}", *([f"{own[0].resolve()}@{own[1]}"] if own else [])]
        self.fields: dict[str, Any] = {
            "source": sources,
            "samples": samples + (own[1] if own else 0),
            "sequence_length": length,
        }
        if own:
            tokens = load(CalibrationConfig(**self.fields), load_tokenizer(model)).tokens
        np.save(self.ids, tokens.numpy())
        self.tokens, self.sha256 = tokens.numel(), _sha256(tokens)


def _sha256(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()


def run_qdeploy(
    calibration: Calibration,
    folder: Path,
    *,
    method: str,
    scheme: str = "W4A16",
    symmetric: bool | None = None,
    group_size: int = GROUP_SIZE,
    settings: Settings | None = None,
    kv_cache: str | None = None,
) -> Run:
    """Run `qdeploy quantize` as users do; its output goes into `folder`.

    Args:
        method: stages joined by "+".
        scheme: a preset.
        symmetric: None for the preset's grid.
        group_size: where the preset has groups to choose.
        settings: stage → what is not its default.
        kv_cache: None leaves it in 16 bits.

    Raises:
        ProcessError: it failed, or did not calibrate on these tokens.
    """
    asked = Recipe.from_flags(
        str(calibration.model.resolve()),
        scheme=scheme,
        method=method,
        group_size=str(group_size) if preset(scheme).element is None and preset(scheme).group_size else None,
        symmetric=symmetric,
        kv_cache=kv_cache,
        calibration=calibration.fields,
    )
    run = quantize(asked, folder, settings)
    seen = read_json(run.folder / "qdeploy.json")["calibration"]
    if seen and seen["sha256"] != calibration.sha256:
        raise ProcessError(f"{run.folder} was calibrated on other tokens than {calibration.ids}")
    return run


def told(settings: Settings) -> str:
    """Settings in a word, for a row's name."""
    return ", ".join(f"{name} {value}" for stage in settings.values() for name, value in stage.items())


def quantize(recipe: Recipe, folder: Path, settings: Settings | None = None) -> Run:
    """Run `qdeploy quantize` with a recipe of one rule, in which these settings are changed.

    Raises:
        ProcessError: it failed.
    """
    folder.mkdir(parents=True)
    output, file, asked = folder / "model", folder / "recipe.yaml", recipe.model_dump(mode="json")
    for stage in asked["rules"][0]["stages"]:
        for name, config in stage.items():
            config.update((settings or {}).get(name, {}))
    write_json(file, asked)  # JSON is YAML
    command = [sys.executable, "-m", "qdeploy", "quantize", "--recipe", str(file), "-o", str(output)]
    usage = process.run(command, folder / "log.txt", folder)
    totals = read_json(output / "qdeploy.json")["totals"]
    return Run(output, totals["seconds"], usage, totals["split"])


def run_peer(peer: Peer, settings: Mapping[str, Any], calibration: Calibration, folder: Path) -> Run:
    """Run a peer in its environment; its output goes into `folder`.

    Raises:
        ProcessError: it failed.
    """
    folder.mkdir(parents=True)
    output, report, job = folder / "model", folder / "report.json", folder / "job.json"
    fields = {
        "model": calibration.model.resolve(),
        "tokens": calibration.ids.resolve(),
        "group_size": GROUP_SIZE,
        "settings": dict(settings),
        "output": output.resolve(),
        "report": report.resolve(),
    }
    write_json(job, {name: str(v) if isinstance(v, Path) else v for name, v in fields.items()})
    command = [str(peer.python), str(RUNNERS / peer.runner), str(job.resolve())]
    usage = process.run(command, folder / "log.txt", folder, peer.environment)
    return Run(output, json.loads(report.read_text())["seconds"], usage)
