"""The load runs of one variant: at the plan's own rate, and at those that the objective tries besides."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdeploy.bench.campaign.steps import Measurement, fingerprint, stamp
from qdeploy.bench.decision.service import judge_load
from qdeploy.bench.decision.standing import RATES, loads_by_rate
from qdeploy.bench.load.figures.assess import compare_lengths
from qdeploy.bench.load.figures.table import output_lengths
from qdeploy.bench.load.run import measure, save
from qdeploy.bench.load.series.series import salted
from qdeploy.bench.load.series.sweep import summarize_series
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.plan import Plan
from qdeploy.bench.records import SERIES, Engine, load_record
from qdeploy.engines.logs import failure, read_log
from qdeploy.errors import EngineError
from qdeploy.files import write_text


@dataclass(frozen=True)
class Loads:
    """What is to be measured, and where.

    Attributes:
        folder: of the variant.
        baseline: of the baseline; None for itself.
        served: fingerprint of what is served, and how.
    """

    plan: Plan
    folder: Path
    baseline: Path | None
    served: str

    def measurements(self) -> list[Measurement]:
        """The plan's own load first, then the other rates, ascending."""
        spec = self.plan.load
        if spec is None:
            return []
        return [self._at(spec, "load", "bench"), *(self._besides(spec, rate) for rate in self.plan.rates)]

    def needed(self, measurement: Measurement) -> bool:
        """Whether it can still tell something: no rate can above one that breaks the objective."""
        rate = measurement.rate
        if rate is None:
            return True
        lower = [load for at, load in loads_by_rate(self.folder).items() if at < rate]
        return not any(judge_load(load).verdict == "fail" for load in lower)

    def doubt(self, measurement: Measurement) -> str | None:
        """Why a load run that is there says little of the server; None where it is sound."""
        load = load_record(measurement.result.parent).load
        return load.doubt if load else None

    def forget_others(self, kept: set[Path]) -> None:
        """Remove the runs at other rates than those in the folders `kept`."""
        for path in (self.folder / RATES).glob("*/"):
            if path not in kept:
                shutil.rmtree(path)

    def write_series(self) -> None:
        """All rates as one series, as `qdeploy bench --sweep` leaves them; nothing for a single one."""
        loads = loads_by_rate(self.folder)
        if len(loads) > 1:
            text = summarize_series(loads).model_dump_json(indent=2)
            write_text(self.folder / RATES / SERIES, text + "\n")

    def _besides(self, own: LoadSpec, rate: float) -> Measurement:
        """At another rate, with prompts of its own: the server has seen the others."""
        changes = {"rate": rate, "salt": salted(own.salt, f"rate {rate:g}")}
        spec = LoadSpec.model_validate(own.model_dump() | changes)
        return replace(self._at(spec, f"load at {rate:g}", f"{RATES}/{rate:g}"), rate=rate)

    def _at(self, spec: LoadSpec, step: str, name: str) -> Measurement:
        def action(engine: Any) -> None:
            measured = measure(spec, engine.base_url, engine.model, tokenizer=engine.checkpoint)
            if measured.result.interrupted:
                raise KeyboardInterrupt
            if measured.result.lost:
                raise EngineError(f"{measured.result.invalid[-1]}.\n{failure(read_log(engine.log))}")
            if self.baseline:
                lengths = output_lengths(_same_or_own(self.baseline, name))
                compare_lengths(measured.result, measured.outcomes, lengths)
            save(measured, spec, self.folder / name, Engine(**engine.describe()))

        files = [stamp(Path(file)) for file in (spec.trace, spec.dataset) if file and Path(file).is_file()]
        depends = fingerprint(self.served, spec.model_dump(mode="json"), files)
        return Measurement(step, depends, self.folder / name / "run.json", action)


def _same_or_own(baseline: Path, name: str) -> Path:
    """The baseline's run at the same rate or, where it was not tried so high, at the plan's own."""
    return baseline / name if (baseline / name).is_dir() else baseline / "bench"
