"""The stations of one variant: quantize, export, serve, and what is measured while it is served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qdeploy import registry
from qdeploy.bench.campaign.loads import Loads
from qdeploy.bench.campaign.state import VariantState
from qdeploy.bench.campaign.steps import Measurement, StepError, Steps, fingerprint, interrupted, stamp
from qdeploy.bench.evaluation import run_eval
from qdeploy.bench.plan import BASELINE, Plan, VariantPlan
from qdeploy.bench.records import Engine
from qdeploy.bench.verify import expect, judge
from qdeploy.engines.endpoint import Endpoint
from qdeploy.errors import QDeployError
from qdeploy.pipeline import quantize
from qdeploy.progress import console

VERIFY_TOKENS = 512
"""Half of what `qdeploy verify` scores: the reference in 16 bits is slow on processors that emulate it."""


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
        baseline = steps.folder / "variants" / BASELINE if variant else None
        self.loads = Loads(plan, self.folder, baseline, self._served)

    def run(self) -> None:
        """Everything that is not there yet. The server runs only if something is to be measured on it.

        Raises:
            StepError: a step failed.
            Interrupted: Ctrl-C, after the server was stopped.
        """
        if self.variant:
            self._quantize(self.variant)
        self._export()
        self._retry_unsound()
        wanted = [m for m in self._measurements() if not self._fresh(m)]
        self.loads.forget_others({m.result.parent for m in self.loads.measurements() if self._fresh(m)})
        if any(map(self.loads.needed, wanted)):
            self._measure(wanted)
        else:
            console.print(f"{self.name}: measured already", highlight=False)
        self.loads.write_series()

    def _measure(self, wanted: list[Measurement]) -> None:
        with self._launch() as engine:
            for measurement in filter(self.loads.needed, wanted):
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
        return [*self.loads.measurements(), *self._verify(), *self._eval()]

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

    def _retry_unsound(self) -> None:
        """Have load runs that say little of the server made again: whatever spoilt them may be over."""
        for load in filter(self._fresh, self.loads.measurements()):
            if reason := self.loads.doubt(load):
                console.print(f"{self.name}: {load.step} is {reason}", highlight=False)
                self.steps.reject(self.state, load.step, reason)

    def _fresh(self, measurement: Measurement) -> bool:
        return self.steps.fresh(self.state, measurement.step, measurement.fingerprint, measurement.result)

    def _bound(self, measurement: Measurement, engine: Any) -> Callable[[], object]:
        return lambda: measurement.action(engine)
