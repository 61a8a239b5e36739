"""What an exported folder says of itself: README.md, and SHA256SUMS over all of it."""

from __future__ import annotations

from pathlib import Path

from qdeploy.checkpoint.checksums import recorded_hashes, write_checksums
from qdeploy.checkpoint.model_card import CARD, make_card
from qdeploy.exporters.base import ExportReport
from qdeploy.files import write_text


def describe(folder: Path, name: str, report: ExportReport, source: Path) -> None:
    """Write both into a folder that is otherwise complete and will be called `name`.

    Weights that are hard links keep the hash that the source has on record, so that an export which copies
    nothing reads nothing either.

    Raises:
        OutputError: the disk is full or read-only.
    """
    write_text(folder / CARD, make_card(folder, name=name, source=source, commands=_commands(name, report)))
    known = recorded_hashes(source)
    linked = {
        file.name: known[file.name]
        for file in folder.glob("*.safetensors")
        if file.name in known and file.samefile(source / file.name)
    }
    write_checksums(folder, recorded_hashes(folder) | linked)


def _commands(name: str, report: ExportReport) -> list[str]:
    started = f"docker compose -f {name}/compose.yaml up"
    if report.engine == "vllm":
        return [f"qdeploy serve {name}", f"PYTHON=python {name}/serve.sh    # any Python with vLLM", started]
    return [f"{name}/serve.sh    # needs trtllm-serve; not run by those who wrote it", started]
