"""`qdeploy.json`: how a checkpoint was made and what each layer lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from qdeploy.errors import CheckpointError
from qdeploy.files import read_json
from qdeploy.validation import first

MANIFEST = "qdeploy.json"


class _Part(BaseModel):
    # A misspelt figure must not vanish.
    model_config = ConfigDict(extra="forbid")


class Module(_Part):
    """One quantized linear layer.

    Attributes:
        scheme: one line for people, e.g. "W4A16 symmetric, group 64".
        shape: (N, K), output and input features.
        relative_error: ‖(W − Ŵ)X‖² / ‖WX‖² on the calibration inputs; of the weights alone where the
            method sees no data.
        bits: of storage that a weight takes, on average, scales and all.
        without_kernel: why the layer is stored dequantized in 16 bit, if it is.
        fingerprint: `qdeploy.fingerprint.fingerprint` of the layer before it was packed.
        damp: dampening that the solver ended with, as a fraction of the Hessian's mean diagonal.
        fallback: why a simpler or more cautious method was used for this layer, if it was.
        tokens: calibration tokens that the layer read: for an expert, those that chose it.
        seconds: time the solver took.
    """

    name: str
    scheme: str
    method: str
    shape: tuple[int, int]
    bits: float | None = None
    without_kernel: str | None = None
    fingerprint: str | None = None
    relative_error: float | None = None
    damp: float | None = None
    fallback: str | None = None
    tokens: int | None = None
    seconds: float | None = None


class CalibrationPart(_Part):
    """What one source gave to the calibration; `sha256` is over the bytes of its tokens."""

    source: str
    samples: int
    documents: int
    sha256: str


class Calibration(_Part):
    """The text that the methods saw; `source` is the recipe's, `parts` is what it came to."""

    source: str
    parts: list[CalibrationPart] = Field(default_factory=list)
    sha256: str
    samples: int
    sequence_length: int
    seed: int


class Model(_Part):
    """The 16-bit checkpoint that was quantized; `sha256` is over its config.json and weight files."""

    source: str
    sha256: str
    architecture: str
    model_type: str
    parameters: int
    dtype: str


class Conversion(_Part):
    """What another folder was made from this one's layers.

    Attributes:
        source, target: names of the formats.
        sha256: over config.json and weight files of the folder that was converted.
        rounded_scales: scales that the target's number format does not hold exactly.
    """

    source: str
    target: str
    sha256: str
    rounded_scales: int = 0


class Totals(_Part):
    """What the run took.

    Attributes:
        seconds: without the start of the interpreter; an interrupted run's finished blocks count.
        split: part of the run → its share of the seconds, without what was done before an interruption.
    """

    source_bytes: int
    output_bytes: int
    seconds: float
    split: dict[str, float] = Field(default_factory=dict)
    peak_rss_bytes: int


class Manifest(_Part):
    """The content of qdeploy.json.

    The same command on the same machine, stopped and resumed or not, makes the same checkpoint byte for byte
    but for what tells of the run itself: provenance.created, the seconds of modules and totals,
    totals.split and totals.peak_rss_bytes, and so this file's line in SHA256SUMS.

    Attributes:
        serving: native if engines have fast kernels for the checkpoint as it is, converted if they do once it
            is stored in another format, reference if it can only be dequantized to 16 bit.
        warnings: what speaks against the calibration, as it was told.
        kv_cache: attention module → "q_scale", "k_scale" and "v_scale" → scale in FP8; empty for 16 bits.
        conversions: what `qdeploy convert` and `qdeploy export` have made of the layers since, in order.
        files: weight file → hex SHA-256, added when the folder is finished.
    """

    record: Literal["qdeploy-checkpoint"] = "qdeploy-checkpoint"
    schema_version: Literal[1] = 1
    provenance: dict[str, Any]
    recipe: dict[str, Any]
    recipe_sha256: str
    calibration: Calibration | None = None
    model: Model
    serving: Literal["native", "converted", "reference"] = "native"
    warnings: list[str] = Field(default_factory=list)
    modules: list[Module] = Field(default_factory=list)
    kv_cache: dict[str, dict[str, float]] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    conversions: list[Conversion] = Field(default_factory=list)
    totals: Totals

    def converted(self, step: Conversion) -> dict[str, Any]:
        """The content of qdeploy.json after another conversion."""
        after = self.model_copy(update={"conversions": [*self.conversions, step]})
        return after.model_dump(mode="json")


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint folder; None if qdeploy did not make it.

    Raises:
        CheckpointError: qdeploy.json is not a manifest of this version.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        return Manifest.model_validate(read_json(path))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not a qdeploy manifest of version 1 ({first(error)}). Restore it, or remove it "
            "to use the folder as one that another tool made."
        ) from error
