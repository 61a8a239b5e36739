"""The stations of one variant: quantize, export, serve, and what is measured while it is served."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdeploy import registry
from qdeploy.bench.campaign.state import VariantState
from qdeploy.bench.campaign.steps import StepError, Steps, fingerprint, interrupted, stamp
from qdeploy.bench.decision.service import judge_load
from qdeploy.bench.decision.standing import RATES, loads_by_rate
from qdeploy.bench.evaluation import run_eval
from qdeploy.bench.load.figures.assess import compare_lengths
from qdeploy.bench.load.figures.table import output_lengths
from qdeploy.bench.load.run import measure, save
from qdeploy.bench.load.series.series import salted
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.plan import BASELINE, Plan, VariantPlan
from qdeploy.bench.records import Engine
from qdeploy.bench.verify import expect, judge
from qdeploy.engines.endpoint import Endpoint
from qdeploy.engines.logs import failure, read_log
from qdeploy.errors import EngineError, QDeployError
from qdeploy.pipeline import quantize
from qdeploy.progress import console

VERIFY_TOKENS = 512
"""Half of what `qdeploy verify` scores: the reference in 16 bits is slow on processors that emulate it."""


@dataclass(frozen=True)
class Measurement:
    """A step done while the variant is served: what it depends on, what it leaves, how it is done.

    `rate` is that of a load which is tried besides the plan's own.
    """

    step: str
    fingerprint: str
    result: Path
    action: Callable[[Any], object]
    rate: float | None = None


class Line:
    """One variant on its way down the line.

    Args:
        model: folder of the 16-bit model.
        variant: None for the baseline.
    """

    def __init__(self, plan: Plan, model: Path, steps: Steps, variant: VariantPlan | None = None) -> None:
        self.plan, self.model, self.steps, self.variant = plan, model, steps, variant
        self.name = variant.name if variant else BASELINE
        self.folder = steps.folder / "variants" / self.name
        self.checkpoint = self.folder / "checkpoint" if variant else model
        self.deploy = self.folder / "deploy"
        self.log = self.folder / "engine.log"
        self.state = self._state()
        self._made = self._checkpoint_fingerprint()
        self._served = fingerprint(self._made, plan.engine.model_dump(mode="json"))

    def run(self) -> None:
        """Everything that is not there yet. The server runs only if something is to be measured on it.

        Raises:
            StepError: a step failed.
            Interrupted: Ctrl-C, after the server was stopped.
        """
        if self.variant:
            self._quantize(self.variant)
        self._export()
        wanted = [m for m in self._measurements() if not self._fresh(m)]
        self._forget_other_rates()
        if not any(map(self._needed, wanted)):
            console.print(f"{self.name}: measured already", highlight=False)
            return
        with self._launch() as engine:
            for measurement in filter(self._needed, wanted):
                self.steps.run(
                    self.state,
                    measurement.step,
                    measurement.fingerprint,
                    measurement.result,
                    self._bound(measurement, engine),
                    self.log,
                )

    def _state(self) -> VariantState:
        """What the campaign remembers of this variant; a new entry where there is none."""
        for known in self.steps.state.variants:
            if known.name == self.name:
                return known
        state = VariantState(
            name=self.name,
            kind="quantized" if self.variant else "baseline",
            checkpoint=f"variants/{self.name}/checkpoint" if self.variant else str(self.model),
            deploy=f"variants/{self.name}/deploy",
        )
        self.steps.state.variants.append(state)
        return state

    def _checkpoint_fingerprint(self) -> str:
        if self.variant is None:
            return fingerprint(stamp(self.model))
        texts = [Path(source.name) for source in self.plan.calibration.source]
        recipe = self.plan.recipe(self.variant).sha256()
        return fingerprint(stamp(self.model), recipe, [stamp(text) for text in texts if text.is_file()])

    def _quantize(self, variant: VariantPlan) -> None:
        last = self.state.steps.get("quantize")
        # What an interrupted run left can be gone on with only if it was this very run.
        restart = last is not None and last.fingerprint != self._made
        self.steps.run(
            self.state,
            "quantize",
            self._made,
            self.checkpoint / "config.json",
            lambda: quantize(self.plan.recipe(variant), self.checkpoint, restart=restart),
        )

    def _export(self) -> None:
        exporter = registry.load("exporters", self.plan.engine.name)()
        gpu = "cpu" if self.plan.engine.device == "cpu" else "auto"
        self.steps.run(
            self.state,
            "export",
            fingerprint(self._made, gpu),
            self.deploy / "engine_args.json",
            lambda: exporter.export(self.checkpoint, self.deploy, gpu=gpu),
        )

    def _launch(self) -> Any:
        device = None if self.plan.engine.device == "auto" else self.plan.engine.device
        named = ["--served-model-name", self.name, *self.plan.engine.arguments]
        console.print(f"{self.name}: starting {self.plan.engine.name}", highlight=False)
        try:
            engine = registry.load("engines", self.plan.engine.name)(device=device)
            return engine.launch(self.deploy, log=self.log, arguments=named)
        except QDeployError as error:
            raise StepError(self.name, "serve", error, self.log) from error
        except KeyboardInterrupt:
            raise interrupted(self.name, "serve") from None

    def _measurements(self) -> list[Measurement]:
        """In the order of their doing: latency first, on a server that nothing else has touched."""
        return [*self._load(), *self._verify(), *self._eval()]

    def _load(self) -> list[Measurement]:
        spec = self.plan.load
        if spec is None:
            return []
        return [self._load_at(spec, "load", "bench"), *map(self._load_besides, self.plan.rates)]

    def _load_besides(self, rate: float) -> Measurement:
        """At another rate than the plan's, with prompts of its own: the server has seen the others."""
        assert self.plan.load is not None
        changes = {"rate": rate, "salt": salted(self.plan.load.salt, f"rate {rate:g}")}
        spec = LoadSpec.model_validate(self.plan.load.model_dump() | changes)
        return replace(self._load_at(spec, f"load at {rate:g}", f"{RATES}/{rate:g}"), rate=rate)

    def _load_at(self, spec: LoadSpec, step: str, name: str) -> Measurement:
        def action(engine: Any) -> None:
            measured = measure(spec, engine.base_url, engine.model, tokenizer=self.deploy)
            if measured.result.interrupted:
                raise KeyboardInterrupt
            if measured.result.lost:
                raise EngineError(f"{measured.result.invalid[-1]}.\n{failure(read_log(self.log))}")
            if self.variant:
                lengths = output_lengths(self._baseline_load(name))
                compare_lengths(measured.result, measured.outcomes, lengths)
            save(measured, spec, self.folder / name, Engine(**engine.describe()))

        files = [stamp(Path(name)) for name in (spec.trace, spec.dataset) if name and Path(name).is_file()]
        depends = fingerprint(self._served, spec.model_dump(mode="json"), files)
        return Measurement(step, depends, self.folder / name / "run.json", action)

    def _baseline_load(self, name: str) -> Path:
        """The baseline's run at the same rate or, where it was not tried so high, at the plan's own."""
        baseline = self.steps.folder / "variants" / BASELINE
        return baseline / name if (baseline / name).is_dir() else baseline / "bench"

    def _forget_other_rates(self) -> None:
        """Remove the runs at rates that the plan does not name, or that were made from other inputs."""
        kept = {m.result.parent for m in self._load() if self._fresh(m)}
        for folder in (self.folder / RATES).glob("*"):
            if folder not in kept:
                shutil.rmtree(folder)

    def _needed(self, measurement: Measurement) -> bool:
        """Whether it can still tell something: no rate can above one that breaks the objective."""
        if measurement.rate is None:
            return True
        loads = loads_by_rate(self.folder)
        return not any(
            judge_load(load).verdict == "fail" for rate, load in loads.items() if rate < measurement.rate
        )

    def _eval(self) -> list[Measurement]:
        settings = self.plan.eval
        if settings is None:
            return []
        baseline = self.steps.folder / "variants" / BASELINE / "eval" if self.variant else None

        def action(engine: Any) -> None:
            with Endpoint(engine.base_url, engine.model) as endpoint:
                run_eval(endpoint, settings, self.folder / "eval", baseline, Engine(**engine.describe()))

        depends = fingerprint(self._served, str(settings), self._baseline_eval())
        return [Measurement("eval", depends, self.folder / "eval" / "run.json", action)]

    def _baseline_eval(self) -> str | None:
        """What the baseline's evaluation was made from; None for the baseline itself."""
        if self.variant is None:
            return None
        baseline = next(v for v in self.steps.state.variants if v.name == BASELINE)
        return baseline.steps["eval"].fingerprint

    def _verify(self) -> list[Measurement]:
        if not self.plan.verify or self.variant is None:
            return []

        def action(engine: Any) -> None:
            expected = expect(self.deploy, VERIFY_TOKENS, self.plan.engine.arguments)
            with Endpoint(engine.base_url, engine.model) as endpoint:
                judge(expected, endpoint, Engine(**engine.describe()), self.folder / "verify")

        return [Measurement("verify", self._served, self.folder / "verify" / "run.json", action)]

    def _fresh(self, measurement: Measurement) -> bool:
        return self.steps.fresh(self.state, measurement.step, measurement.fingerprint, measurement.result)

    def _bound(self, measurement: Measurement, engine: Any) -> Callable[[], object]:
        return lambda: measurement.action(engine)
