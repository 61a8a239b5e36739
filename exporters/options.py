"""Options that `qdeploy export` and `qdeploy lint` share."""

from __future__ import annotations

from typing import Annotated

import typer

TensorParallel = Annotated[
    int,
    typer.Option(
        "--tensor-parallel",
        "--tensor-parallel-size",
        "--tp-size",
        "--tp",
        help="Devices that each layer is split over.",
    ),
]
PipelineParallel = Annotated[
    int,
    typer.Option(
        "--pipeline-parallel",
        "--pipeline-parallel-size",
        "--pp-size",
        "--pp",
        help="Stages that the model is split into, for --backend tensorrt.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print what was found as JSON on standard output.")]
