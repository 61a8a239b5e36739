"""Several load runs on one endpoint, a folder each, that an interrupted series goes on from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from qdeploy.bench.load.run import Measurement, save
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.records import LoadResult, load_record
from qdeploy.bench.run_folder import check_free
from qdeploy.errors import EndpointError, Interrupted, OutputError, disk_errors
from qdeploy.files import read_json, write_json
from qdeploy.progress import console

SETTINGS = "settings.json"

Measure = Callable[[LoadSpec], Measurement]


class Series:
    """Runs of `template` at other rates. With a folder, a run that is there is read, not made again.

    Args:
        template: what the runs have in common; its own rate or users are replaced.
        measure: makes one run.
        folder: where to keep the runs; it may hold those of the same series.

    Raises:
        OutputError: the folder holds something else, or a series with other settings.
    """

    def __init__(self, template: LoadSpec, measure: Measure, folder: Path | None = None) -> None:
        self.template, self.folder = template, folder
        self.results: dict[float, LoadResult] = {}
        self._measure = measure
        if folder:
            self.template = _opened(folder, template)

    def at(self, rate: float) -> LoadResult:
        """The figures of an open loop at `rate` requests per second.

        Raises:
            Interrupted: Ctrl-C; this run is made again, the ones before it are kept.
            EndpointError: the endpoint went away; likewise.
        """
        rate = float(f"{rate:.4g}")
        if rate not in self.results:
            self.results[rate] = self._run(f"rate-{rate:g}", {"rate": rate, "concurrency": None})
        return self.results[rate]

    def alone(self) -> LoadResult:
        """The figures of one request after another: no load is lighter."""
        return self._run("alone", {"concurrency": 1, "rate": None})

    def all_at_once(self) -> LoadResult:
        """The figures of all requests sent at the same time."""
        return self._run("all-at-once", {"concurrency": self.template.requests, "rate": None})

    def _run(self, name: str, changes: dict[str, float | int | None]) -> LoadResult:
        salt = salted(self.template.salt, name)
        spec = LoadSpec.model_validate(self.template.model_dump() | changes | {"salt": salt})
        folder = self.folder / name if self.folder else None
        if folder and (folder / "run.json").is_file():
            known = load_record(folder).load
            assert known is not None, "a run folder of a series holds a load"
            return known
        console.print(f"{name.replace('-', ' ')}:", highlight=False)
        measured = self._measure(spec)
        again = f" The same command goes on from {folder.parent}." if folder else ""
        if measured.result.interrupted:
            raise Interrupted(f"Interrupted in the run {name}.{again}")
        if measured.result.lost:
            raise EndpointError(f"In the run {name}, {measured.result.invalid[-1]}.{again}")
        if folder:
            save(measured, spec, folder)
        return measured.result


def salted(salt: str, name: str) -> str:
    """A salt that is another one for every name, and the same again for the same name."""
    return hashlib.sha256(f"{salt} {name}".encode()).hexdigest()[:8]


def _opened(folder: Path, template: LoadSpec) -> LoadSpec:
    """Begin a series in `folder`, or go on with the one there, with its salt."""
    path = folder / SETTINGS
    asked = template.model_dump(mode="json")
    if not path.is_file():
        check_free(folder)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(path, asked)
        return template
    begun = read_json(path)
    salt = begun.get("salt") if "salt" not in template.model_fields_set else template.salt
    wanted = asked | {"salt": salt}
    other = sorted(key for key in wanted if wanted[key] != begun.get(key))
    if other:
        changes = ", ".join(f"{key} {begun.get(key)} → {wanted[key]}" for key in other)
        raise OutputError(
            f"{folder} holds a series with other settings ({changes}). Choose another folder with -o."
        )
    return template.model_copy(update={"salt": salt})
