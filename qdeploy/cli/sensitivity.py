"""`qdeploy sensitivity`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qdeploy.cli import recipe_options as options
from qdeploy.errors import OutputError, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from qdeploy.sensitivity.assign import Target
    from qdeploy.sensitivity.candidates import Choice
    from qdeploy.sensitivity.result import Chosen, Result
    from qdeploy.sensitivity.units import Unit

SAMPLES, SEQUENCE_LENGTH = 8, 256


Model = Annotated[str, typer.Argument(help="Folder or hub id of the 16-bit model.")]
TargetBits = Annotated[
    float | None,
    typer.Option(
        help="Most bits per weight: the mean over the linear layers of the blocks, with scales and "
        "zero points."
    ),
]
TargetSize = Annotated[
    str | None, typer.Option(help="Most bytes of the checkpoint's weight files, e.g. 3GiB.")
]
MaxKl = Annotated[
    float | None,
    typer.Option(help="Most harm, in nats per token; then the smallest checkpoint is looked for."),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Recipe file to make, e.g. recipe.yaml.")]
Schemes = Annotated[
    str | None,
    typer.Option(
        help="Formats to try beside 16 bit, joined by commas; NAME:GROUP sets the columns that share a "
        "scale, otherwise the largest of 128, 64 and 32 that divides a layer. "
        "Default: W3A16,W4A16,W4A16:32,W4A16_ASYM,W4A16_ASYM:32,W8A16,W8A8."
    ),
]
Engine = Annotated[str, typer.Option(help="Engine whose kernels decide what may be used.")]
Gpu = Annotated[str, typer.Option(help="Its device, e.g. a100, h100 or cpu; auto is what this machine has.")]
Method = Annotated[
    str, typer.Option(help="How the recipe chooses codes: stages joined by +, as in qdeploy quantize.")
]
Score = Annotated[
    Literal["gradient", "kl"],
    typer.Option(help="How harm is found: from gradients, or measured trial by trial, much slower."),
]
Samples = Annotated[int, typer.Option(help="Calibration sequences.", min=1)]
SequenceLength = Annotated[int, typer.Option(help="Tokens in each of them.", min=8)]
Seed = Annotated[int, typer.Option(help="Chooses the sequences, and labels for gradients.", min=0)]
Json = Annotated[bool, typer.Option("--json", help="Print all of it as JSON on standard output.")]


def sensitivity(
    model: Model,
    target_bits: TargetBits = None,
    target_size: TargetSize = None,
    max_kl: MaxKl = None,
    output: Output = None,
    schemes: Schemes = None,
    engine: Engine = "vllm",
    gpu: Gpu = "auto",
    method: Method = "gptq",
    score: Score = "gradient",
    calibration: options.Calibration = None,
    samples: Samples = SAMPLES,
    sequence_length: SequenceLength = SEQUENCE_LENGTH,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure what each part of a model suffers from each number format, and fit formats to a budget.

    Harm is the KL divergence of the model's predictions from those in 16 bit, in nats per token, with one
    part rounded as the method does it and all else in 16 bit. Parts are what engines run as one matrix: q, k
    and v; gate and up; the experts of a block; and every other linear layer of the blocks. Formats that the
    engine has no kernel for on the device are left out. A method that looks at data, such as gptq, gets four
    times as many samples beside those that harm is measured on; transforms are left out.

    With a target, the formats that keep to it with the least harm in sum are written as a recipe for qdeploy
    quantize; the check runs them together. Without one, the table is all.

    Memory holds one block of the model in float32 at a time, its rounding errors in every format, hidden
    states before every block, and the output head; never the whole model. What cannot fit is refused.

    Examples:

        qdeploy sensitivity ./llama --gpu h100

        qdeploy sensitivity ./llama --target-bits 4.5 --gpu h100 -o recipe.yaml

        qdeploy sensitivity ./llama --target-size 3GiB --schemes W4A16:64,W8A8 -o recipe.yaml

        qdeploy quantize --recipe recipe.yaml -o llama-mixed
    """
    options.let_idle_threads_sleep()
    target = _target(target_bits, target_size, max_kl)
    _check_output(output, target)

    from qdeploy.recipe import CalibrationConfig
    from qdeploy.sensitivity.candidates import DEFAULT, Candidate
    from qdeploy.sensitivity.measure import Asked
    from qdeploy.sensitivity.result import run

    given = {} if calibration is None else {"source": calibration}
    text = CalibrationConfig.model_validate(
        {"samples": samples, "sequence_length": sequence_length, "seed": seed, **given}
    )
    candidates = [Candidate.parse(name) for name in (schemes.split(",") if schemes else DEFAULT)]
    found = run(Asked(model, candidates, engine, gpu, score, text, method), target, output)
    _show(found, output, json=json)


def _show(found: Result, output: Path | None, *, json: bool) -> None:
    """On the terminal, or as JSON; the recipe too where it went into no file."""
    import json as jsonlib

    from rich.console import Console

    from qdeploy.progress import console

    for line in refusals(found):
        console.print(line, highlight=False)
    if json:
        typer.echo(jsonlib.dumps(as_json(found), indent=2))
        return
    Console().print(harms(found))
    if found.chosen is not None:
        Console().print(summary(found.chosen, output))
        if output is None:
            typer.echo(found.chosen.recipe, nl=False)


def _target(bits: float | None, size: str | None, kl: float | None) -> Target | None:
    """The one target that was given, if any.

    Raises:
        UsageError: several, or one that is not above 0.
    """
    from qdeploy.memory import parse_size
    from qdeploy.sensitivity.assign import Target

    given = {"--target-bits": bits, "--target-size": size, "--max-kl": kl}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UsageError(f"{' and '.join(names)} exclude each other. Give one of them.")
    for name, value in (("--target-bits", bits), ("--max-kl", kl)):
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{name} is {value:g}; it must be above 0.")
    if bits is not None:
        return Target("bits", bits)
    if size is not None:
        return Target("size", parse_size(size, "--target-size"))
    return None if kl is None else Target("kl", kl)


def _check_output(output: Path | None, target: Target | None) -> None:
    """Find out before the work that its result has no place.

    Raises:
        UsageError: there is nothing to write.
        OutputError: the file is there already, or its folder is not.
    """
    if output is None:
        return
    if target is None:
        raise UsageError(
            f"Nothing to write to {output} without a target. Give --target-bits, --target-size or --max-kl."
        )
    if output.exists():
        raise OutputError(f"{output} exists, and someone may have edited it. Remove it, or give another -o.")
    if not output.resolve().parent.is_dir():
        raise OutputError(f"{output.parent} is not a folder. Make it, or give another -o.")


def refusals(found: Result) -> Iterator[str]:
    """A line for each scheme that the target does not serve."""
    asked, units = found.asked, len(found.prepared.subject.units)
    for scheme, (reason, count) in found.prepared.refused.items():
        where = "" if count == units else f" for {count} of {units} parts"
        yield f"{scheme} left out{where} on {asked.engine}, {asked.gpu}: {reason}."


def as_json(found: Result) -> dict[str, Any]:
    """Everything, for programs; sizes in bytes, KL in nats per token."""
    prepared, asked, chosen = found.prepared, found.asked, found.chosen
    units = [
        {
            "name": unit.name,
            "layers": list(unit.layers),
            "weights": unit.weights,
            "choices": [
                _choice(found, unit, scheme) for scheme in (*prepared.subject.schemes[unit.name], None)
            ],
            "chosen": _described(chosen.assigned.choices[unit.name]) if chosen else None,
        }
        for unit in prepared.subject.units
    ]
    return {
        "model": asked.model,
        "engine": asked.engine,
        "gpu": asked.gpu,
        "score": asked.score,
        "calibration": asked.calibration.model_dump(mode="json"),
        "seconds": round(found.seconds, 1),
        "left_out": {scheme: reason for scheme, (reason, _) in prepared.refused.items()},
        "units": units,
        "assignment": _assignment(chosen) if chosen else None,
    }


def _choice(found: Result, unit: Unit, scheme: Choice) -> dict[str, Any]:
    sizes = found.prepared.sizes
    harm = found.harms[unit.name, scheme] if scheme else None
    return {
        "scheme": _described(scheme),
        "kl": harm.nats if harm else 0.0,
        "kl_error": harm.error if harm else 0.0,
        "bits": sizes.bits(unit, scheme) / unit.weights,
        "bytes": sizes.bytes(unit, scheme),
    }


def _assignment(chosen: Chosen) -> dict[str, Any]:
    return {
        "target": {"kind": chosen.target.kind, "value": chosen.target.value},
        "bits": chosen.assigned.bits,
        "bytes": chosen.assigned.size,
        "kl_predicted": chosen.assigned.harm,
        "kl_together": chosen.together.nats,
        "recipe": chosen.recipe,
    }


def _described(scheme: Choice) -> str:
    return scheme.describe() if scheme else "16 bit"


def harms(found: Result) -> Table:
    """Parts and their harm in each scheme that was asked for, the most harmed first."""
    from rich.table import Table

    subject, chosen = found.prepared.subject, found.chosen
    stack = subject.blocks[0].name.rpartition(".")[0]
    tried = [c for c in found.asked.candidates if c.scheme.name in {s.name for _, s in subject.trials}]
    table = Table(title=f"KL in nats per token with one part of {stack} rounded")
    table.add_column("Part", overflow="fold")
    for candidate in tried:
        table.add_column(str(candidate), justify="right", no_wrap=True)
    if chosen:
        table.add_column("Chosen", no_wrap=True)
    for unit in sorted(subject.units, key=lambda unit: -_worst(found, unit)):
        columns = {candidate.for_unit(unit): str(candidate) for candidate in reversed(tried)}
        cells = [_cell(found, unit, candidate.for_unit(unit)) for candidate in tried]
        picked = chosen.assigned.choices[unit.name] if chosen else None
        last = [columns[picked] if picked else "16 bit"] if chosen else []
        short = unit.name.removeprefix(f"{stack}.").replace("_proj", "")  # else a row takes three lines
        table.add_row(short, *cells, *last)
    return table


def _cell(found: Result, unit: Unit, scheme: Choice) -> str:
    harm = found.harms.get((unit.name, scheme)) if scheme else None
    return f"{harm.nats:.5f}" if harm else "–"


def _worst(found: Result, unit: Unit) -> float:
    schemes = found.prepared.subject.schemes[unit.name]
    return max((found.harms[unit.name, scheme].nats for scheme in schemes), default=0.0)


def summary(chosen: Chosen, output: Path | None) -> Table:
    """What was chosen comes to."""
    from rich.table import Table

    from qdeploy.memory import format_size

    assigned = chosen.assigned
    table = Table(title=f"Target: {chosen.target}", show_header=False)
    table.add_row("Bits per weight", f"{assigned.bits:.4f}, scales and zero points included")
    table.add_row("Weight files", format_size(assigned.size))
    table.add_row("KL, sum of each part alone", f"{assigned.harm:.4f} nats per token")
    table.add_row("KL, all together", f"{chosen.together.nats:.4f} nats per token")
    if output is not None:
        table.add_row("Next", f"qdeploy quantize --recipe {output} -o DEPLOY")
    return table
