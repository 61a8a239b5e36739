"""The options of `qdeploy bench` that say what load to put on the endpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdeploy.errors import UsageError

if TYPE_CHECKING:
    from qdeploy.bench.load.spec import LoadSpec

OPTIONS = {"requests": "num-requests", "timeout_s": "timeout"}
"""Fields of LoadSpec whose option has another name."""


@dataclass(frozen=True)
class LoadOptions:
    """A field for each of LoadSpec's, in the order in which help lists them."""

    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests per second, sent on time come what may.")
    ] = None
    end_rate: Annotated[
        float | None, typer.Option(help="Open loop: rate at the last request; it changes linearly.")
    ] = None
    arrival: Annotated[str, typer.Option(help="Open loop: poisson, gamma or constant.")] = "poisson"
    burstiness: Annotated[
        float, typer.Option(help="Gamma arrivals: below 1 they come in bursts, above 1 more evenly.")
    ] = 1.0
    trace: Annotated[
        Path | None, typer.Option(help="Replay: an Azure, BurstGPT, Mooncake or plain trace.")
    ] = None
    time_scale: Annotated[float, typer.Option(help="Replay: 0.5 is twice as fast as recorded.")] = 1.0
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: requests in flight; each waits for an earlier one.")
    ] = None
    slo: Annotated[
        str | None,
        typer.Option(help="Limits, e.g. p99_ttft=500ms,p99_tpot=50ms. With no load: find the highest rate."),
    ] = None
    num_requests: Annotated[int, typer.Option(help="Measured requests.")] = 200
    prompt_tokens: Annotated[int, typer.Option(help="Length of every prompt.")] = 128
    output_tokens: Annotated[int, typer.Option(help="Length of every answer.")] = 32
    dataset: Annotated[
        Path | None, typer.Option(help="Prompts: ShareGPT-style JSON, or JSON lines with a prompt.")
    ] = None
    turns: Annotated[int, typer.Option(help="Dataset: at most so many turns of a conversation.")] = 1
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--completions", help="Route; default: what the endpoint takes.", show_default=False
        ),
    ] = None
    stream: Annotated[bool, typer.Option(help="Have answers streamed.")] = True
    ignore_eos: Annotated[bool, typer.Option(help="Have every answer be as long as asked.")] = True
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Text at which an answer ends; may be repeated.", show_default=False),
    ] = None
    warmup: Annotated[int, typer.Option(help="Requests before the measurement.")] = 4
    seed: Annotated[int, typer.Option(help="Fixes the arrival times.")] = 0
    salt: Annotated[
        str | None, typer.Option(help="Hex digits that with the seed fix the prompts; default: new ones.")
    ] = None
    timeout: Annotated[float, typer.Option(help="Seconds until a request counts as failed.")] = 600.0
    price_per_hour: Annotated[
        float | None, typer.Option(help="Price of the server, for the cost of a million tokens.")
    ] = None

    def fields(self) -> dict[str, Any]:
        """Fields of LoadSpec; those that were not given and have no value of their own are its to choose."""
        given = {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}
        given |= {field: given.pop(option.replace("-", "_")) for field, option in OPTIONS.items()}
        return {name: value for name, value in given.items() if value is not None}


def spec_of(**fields: Any) -> LoadSpec:
    """The options as a LoadSpec; what is wrong with one is said under the option's own name."""
    from pydantic import ValidationError

    from qdeploy.bench.load.spec import LoadSpec

    try:
        return LoadSpec(**fields)
    except ValidationError as error:
        problems = [_problem(str(e["loc"][0]) if e["loc"] else "", e["msg"]) for e in error.errors()]
        raise UsageError("; ".join(problems) + ".") from error


def _problem(field: str, message: str) -> str:
    message = re.sub(r"`(\w+)`", lambda match: _option(match[1]), message.removeprefix("Value error, "))
    return f"{_option(field)}: {message}" if field else message[0].upper() + message[1:]


def _option(field: str) -> str:
    return "--" + OPTIONS.get(field, field.replace("_", "-"))
