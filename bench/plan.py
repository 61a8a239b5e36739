"""The plan of a campaign: one model, several ways to quantize it, what to measure on each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
    with_config,
)

from qdeploy import registry
from qdeploy.bench.decision.objective import Objective
from qdeploy.bench.evaluation import EvalSettings
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.records import Optimum
from qdeploy.errors import QDeployError, RecipeError, UnknownNameError
from qdeploy.recipe import CalibrationConfig, Recipe
from qdeploy.validation import explain

BASELINE = "baseline"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SALT = "0"
"""Every variant starts on a server of its own with an empty cache, so all may be sent the same prompts."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EnginePlan(_Part):
    """What serves the variants. `arguments` go to the engine for every variant alike."""

    name: str = "vllm"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    arguments: tuple[str, ...] = ()

    @field_validator("name")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if name not in registry.names("engines"):
            raise UnknownNameError("engine", name, registry.names("engines"))
        return name


class VariantPlan(_Part):
    """One way to quantize; the fields are those of `qdeploy quantize`."""

    name: str = Field(pattern=NAME)
    scheme: str = "W4A16"
    method: str = "gptq"
    group_size: int | Literal["auto", "channel"] | None = None
    symmetric: bool | None = None

    @field_validator("name")
    @classmethod
    def _not_the_baseline(cls, name: str) -> str:
        if name == BASELINE:
            raise ValueError(f"{BASELINE!r} is the name of the 16-bit model, which is always served first")
        return name


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class EvalPlan(EvalSettings):
    """The settings of `qdeploy eval`; a field that it does not have is refused."""


class Plan(_Part):
    """The whole plan; of `load` and `eval`, one may be left out and is then not measured."""

    model: str
    engine: EnginePlan = EnginePlan()
    calibration: CalibrationConfig = CalibrationConfig()
    variants: tuple[VariantPlan, ...]
    load: LoadSpec | None = None
    eval: EvalPlan | None = None
    verify: bool = False
    objective: Objective = Objective()

    @field_validator("load", mode="before")
    @classmethod
    def _same_prompts_for_all(cls, load: Any) -> Any:
        return {"salt": SALT} | load if isinstance(load, dict) else load

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if not self.variants:
            raise ValueError("variants: give at least one")
        if self.load is None and self.eval is None:
            raise ValueError("nothing is to be measured: give load or eval")
        names = [variant.name for variant in self.variants]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two variants are named {name!r}")
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        load, asked = self.load, self.objective
        if asked.rates and not (load and load.rate and not load.end_rate):
            raise ValueError("objective.rates are tried besides the rate of an open loop: give load.rate")
        if self.optimum in ("rate", "cost") and not (load and load.rate and load.slo):
            raise ValueError(f"objective.optimize {self.optimum}: give load.rate and load.slo")
        if self.optimum == "cost" and not (load and load.price_per_hour):
            raise ValueError("objective.optimize cost: give load.price_per_hour")
        return self

    @property
    def optimum(self) -> Optimum:
        """What is best of the variants that keep the objective."""
        has_rate = self.load is not None and self.load.rate is not None and self.load.slo is not None
        return self.objective.optimize or ("rate" if has_rate else "size")

    @property
    def rates(self) -> tuple[float, ...]:
        """Rates in requests/s that are tried besides the load's own."""
        own = self.load.rate if self.load else None
        return tuple(rate for rate in self.objective.rates if rate != own)

    def recipe(self, variant: VariantPlan) -> Recipe:
        """How the variant is quantized.

        Raises:
            QDeployError: unknown method or scheme, or a combination that does not exist.
        """
        return Recipe.from_flags(
            self.model,
            scheme=variant.scheme,
            method=variant.method,
            group_size=None if variant.group_size is None else str(variant.group_size),
            symmetric=variant.symmetric,
            calibration=self.calibration.model_dump(),
        )


def load_plan(path: Path) -> Plan:
    """Read and check a plan; files that it names are relative to its own folder.

    Raises:
        RecipeError: the file cannot be read, or what is wrong in it, by file and field.
    """
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"Cannot read the plan {path}: {error}.") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(fields, dict):
        raise RecipeError(f"{path} must be a mapping with the keys {', '.join(Plan.model_fields)}.")
    try:
        plan = Plan.model_validate(_beside(path.parent, fields))
    except ValidationError as error:
        raise RecipeError(f"{path}: {explain(error, Plan)}") from error
    except UnknownNameError as error:
        raise RecipeError(f"{path}: {error}") from error
    plan = plan.model_copy(update={"calibration": plan.calibration.beside(path.parent)})
    _check_recipes(path, plan)
    return plan


def _check_recipes(path: Path, plan: Plan) -> None:
    for variant in plan.variants:
        try:
            plan.recipe(variant)
        except QDeployError as error:
            raise RecipeError(f"{path}: variant {variant.name}: {error}") from error


def _beside(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with paths that exist beside the plan made independent of the working directory."""
    found = dict(fields)
    places = ((None, "model"), ("eval", "text"), ("eval", "data_dir"), ("load", "trace"), ("load", "dataset"))
    for part, key in places:
        inner = found if part is None else found.get(part)
        if isinstance(inner, dict) and isinstance(inner.get(key), str) and (folder / inner[key]).exists():
            changed = inner | {key: str((folder / inner[key]).resolve())}
            found = changed if part is None else found | {part: changed}
    return found
