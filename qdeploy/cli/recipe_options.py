"""The options that make a recipe, shared by `qdeploy quantize`, `plan` and `recipe show`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.cli.option_groups import with_groups
from qdeploy.errors import UsageError

if TYPE_CHECKING:
    from qdeploy.recipe import Recipe

Calibration = Annotated[
    list[str] | None,
    typer.Option(
        help="Text that GPTQ sees: builtin (prose, code and chat out of Python's own library, offline), "
        "wikitext2, c4, or a .txt, .jsonl or .parquet file. Give it several times for a mixture, with "
        "SOURCE@WEIGHT for unequal shares. Default: builtin.",
        show_default=False,
    ),
]
ActivationMemory = Annotated[
    str | None,
    typer.Option(
        help="RAM that activations may take, e.g. 2GiB: more hidden states are kept on the disk, and blocks "
        "run again instead of waiting. Changes time, no result. Default: half of what is free."
    ),
]
DeviceMemory = Annotated[
    str | None,
    typer.Option(
        help="The same for the GPU: memory that activations inside a block may take. Default: half of what "
        "is free."
    ),
]


@dataclass(frozen=True)
class Asked:
    """What the user gave of the options that make a recipe, in the order in which help lists them."""

    model: Annotated[
        str | None,
        typer.Argument(help="Folder or hub id of the 16-bit model. May be left to the recipe file."),
    ] = None
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            help="Number format: W4A16, W4A16_ASYM (with zero points), W8A8, W4A8, FP8_DYNAMIC, NVFP4 …; all "
            "of them, and which engine runs them: qdeploy methods. Default: W4A16.",
        ),
    ] = None
    method: Annotated[
        str | None,
        typer.Option(
            help="How codes are chosen: gptq (needs calibration), rtn, …; after transforms, if any, joined "
            "by +: smoothquant+gptq. All of them and their knobs: qdeploy methods. Default: gptq."
        ),
    ] = None
    group_size: Annotated[
        str | None,
        typer.Option(
            help="Columns that share a scale: a number, 'channel', or 'auto' for the largest of 128, 64 and "
            "32 that divides every layer. Default: the scheme's."
        ),
    ] = None
    symmetric: Annotated[
        bool | None,
        typer.Option(
            "--symmetric/--asymmetric",
            help="Fix the zero point, or choose it group by group. Default: the scheme's.",
            show_default=False,
        ),
    ] = None
    kv_cache: Annotated[
        str | None,
        typer.Option(
            "--kv-cache",
            help="fp8: let engines keep keys and values in FP8, in half the memory, with scales from the "
            "calibration text. Default: none, which is 16 bits.",
        ),
    ] = None
    calibration: Calibration = None
    samples: Annotated[int | None, typer.Option(help="Calibration sequences. Default: 128.")] = None
    sequence_length: Annotated[int | None, typer.Option(help="Tokens in each of them. Default: 512.")] = None
    seed: Annotated[int | None, typer.Option(help="Chooses the sequences. Default: 0.")] = None
    file: Annotated[
        Path | None,
        typer.Option(
            "--recipe", help="YAML file that takes the place of the other options, layer by layer if need be."
        ),
    ] = None

    def recipe(self) -> Recipe:
        """The recipe of a file or of flags, never of both.

        Raises:
            UsageError: a file and flags, or neither a model nor a file.
            RecipeError: the recipe is not valid.
        """
        from qdeploy.recipe import CalibrationConfig, Recipe

        own = ("model", "file")
        given = {key: value for key, value in vars(self).items() if value is not None and key not in own}
        if self.file is not None:
            if given:
                names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
                raise UsageError(
                    f"{self.file} decides what {names} would. Change the file, or leave --recipe out."
                )
            return Recipe.from_yaml(self.file, self.model)
        if self.model is None:
            raise UsageError("No model. Give a folder or hub id, or --recipe with a file that names one.")
        if "calibration" in given:
            given["source"] = given.pop("calibration")
        calibration = {name: given.pop(name) for name in CalibrationConfig.model_fields if name in given}
        return Recipe.from_flags(self.model, **given, calibration=calibration)


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes these options as `asked`."""
    expanded = with_groups(command)

    @functools.wraps(expanded)
    def run(**given: Any) -> None:
        let_idle_threads_sleep()
        expanded(**given)

    return run


def let_idle_threads_sleep() -> None:
    """Before torch is loaded: its idle OpenMP threads spin on cores that compiled loops could use.

    GPTQ of SmolLM2-135M on two cores solves its layers in 14.9 s so, in 17.5 s without.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
