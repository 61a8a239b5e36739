"""All that is drawn on the page."""

from __future__ import annotations

from dataclasses import dataclass

from qdeploy.bench.report.collect import Evidence
from qdeploy.bench.report.plots.accuracy import forest_panels
from qdeploy.bench.report.plots.distributions import distribution_panels
from qdeploy.bench.report.plots.fidelity import kl_panels
from qdeploy.bench.report.plots.latency import latency_panels
from qdeploy.bench.report.plots.layers import layer_panels
from qdeploy.bench.report.plots.pareto import ParetoPlot, pareto_plots
from qdeploy.bench.report.plots.rates import RatePlots, rate_plots


@dataclass(frozen=True)
class Drawings:
    """Panels of SVG markup by what they show; empty where it was not measured."""

    pareto: list[ParetoPlot]
    latency: list[str]
    distributions: list[str]
    rates: RatePlots | None
    accuracy: list[str]
    kl: list[str]
    layers: list[str]


def draw(evidence: Evidence) -> Drawings:
    """Draw all of it."""
    variants = evidence.variants
    return Drawings(
        pareto=pareto_plots(evidence),
        latency=latency_panels(variants),
        distributions=distribution_panels(variants),
        rates=rate_plots(variants),
        accuracy=forest_panels(variants),
        kl=kl_panels(variants),
        layers=layer_panels(variants),
    )
