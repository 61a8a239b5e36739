"""The options of `qdeploy eval` that say what to measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qdeploy.bench.evaluation import EvalSettings


@dataclass(frozen=True)
class EvalOptions:
    """A field for each of EvalSettings', in the order in which help lists them."""

    text: Annotated[
        str,
        typer.Option(
            help="Text for fidelity: `builtin`, a text file, a perplexity protocol (above), or `none`."
        ),
    ] = "builtin"
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Folder with the model's tokenizer; default: the local folder that vLLM serves."),
    ] = None
    windows: Annotated[
        int | None,
        typer.Option(help="Windows of text to score, from its start; default: a protocol's all, else 32."),
    ] = None
    window_tokens: Annotated[
        int | None, typer.Option(help="Tokens a window; default: the protocol's, else 512.")
    ] = None
    top_k: Annotated[
        int, typer.Option(help="Log-probabilities kept a position; at most the engine's --max-logprobs.")
    ] = 128
    samples: Annotated[
        int,
        typer.Option(help="Continuations that the baseline draws for a Monte-Carlo check of the divergence."),
    ] = 0
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: `smoke`, lm-eval task names or YAML files, or `none`; default: `smoke`, "
            "but `none` with --suite."
        ),
    ] = None
    suite: Annotated[
        str | None, typer.Option(help="Suite of tasks: `s1` (26 data sets), `s2` (BOSS) or `openllm`.")
    ] = None
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question; default: the task's own number.")
    ] = None
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder with original files of data sets (docs/tasks.md) and of protocols' texts; what is "
            "not there comes from the hub."
        ),
    ] = None
    limit: Annotated[int | None, typer.Option(help="Only the first items of each task.")] = None
    margin: Annotated[
        float, typer.Option(help="Share of the baseline's accuracy that may be lost and still pass.")
    ] = 0.01
    until_decided: Annotated[
        bool,
        typer.Option(
            "--until-decided", help="Against a baseline: score items in random order until all is decided."
        ),
    ] = False
    noise: Annotated[
        bool,
        typer.Option("--noise", help="Of a baseline: score it twice, for the noise floor of comparisons."),
    ] = False
    concurrency: Annotated[int, typer.Option(help="Requests in flight.")] = 8

    def settings(self) -> EvalSettings:
        """What they ask for."""
        from qdeploy.bench.evaluation import EvalSettings

        text = None if self.text == "none" else self.text
        return EvalSettings(**vars(self) | {"text": text, "tasks": self._names()})

    def _names(self) -> tuple[str, ...]:
        given = self.tasks or ("none" if self.suite else "smoke")
        return () if given == "none" else tuple(name.strip() for name in given.split(","))
