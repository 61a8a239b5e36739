"""Drawings, read back from their markup."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from qdeploy.bench.load.figures.metrics import summarize
from qdeploy.bench.load.figures.table import write_requests
from qdeploy.bench.load.spec import LoadSpec
from qdeploy.bench.records import Estimate, TaskScore
from qdeploy.bench.report.checkpoint import Checkpoint
from qdeploy.bench.report.collect import Evidence, Variant, collect
from qdeploy.bench.report.numbers import number
from qdeploy.bench.report.plots.accuracy import forest_panels
from qdeploy.bench.report.plots.distributions import distribution_panels
from qdeploy.bench.report.plots.frame import LEFT
from qdeploy.bench.report.plots.layers import layer_panels
from qdeploy.bench.report.plots.pareto import pareto_plots
from qdeploy.bench.report.plots.rates import knee_words, rate_plots, series_words
from qdeploy.bench.report.svg import WIDTH, Drawing, shortened

from .conftest import manifest, record, task_score
from .simulated import SPEEDS, outcome, simulated_campaign


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return collect([simulated_campaign(tmp_path_factory.mktemp("plots"))])


def drawn(markup: str, style: str) -> list[ElementTree.Element]:
    """The shapes of a style, in the order they are drawn."""
    return [e for e in ElementTree.fromstring(markup).iter() if style in e.get("class", "").split()]


def corners(path: str) -> list[tuple[float, float]]:
    """The points of a path of M, L, H and V."""
    points: list[tuple[float, float]] = []
    for command, text in re.findall(r"([MLHV])([-\d. ]+)", path):
        numbers = [float(number) for number in text.split()]
        x, y = points[-1] if points else (0.0, 0.0)
        points.append({"H": (numbers[0], y), "V": (x, numbers[0])}.get(command) or (numbers[0], numbers[-1]))
    return points


def test_a_path_is_where_its_points_are() -> None:
    points = [(1.0, 2.0), (5.5, 2.0), (5.5, 7.0), (6.0, 3.0)]
    drawing = Drawing(10, "t", "d")
    drawing.path(points, "curve")
    (path,) = drawn(drawing.markup(), "curve")
    assert corners(path.get("d", "")) == points


def test_hostile_words_stay_words() -> None:
    drawing = Drawing(10, "<b>", "]]>")
    with drawing.reading('"><script>', ["<i>", "&amp;"], 0, 0):
        drawing.text(0, 0, "</svg>")
    assert not re.search("<(b|i|script)>", drawing.markup())
    assert [e.text for e in drawn(drawing.markup(), "readout")] == ["<i>", "&amp;"]


def test_many_variants_are_told_apart_by_hue_and_shape() -> None:
    drawing = Drawing(10, "t", "d")
    for index in range(36):
        drawing.marker(index, 0, 0)
    looks = {(e.get("class"), e.tag, e.get("d")) for e in drawn(drawing.markup(), "dot")}
    assert len(looks) == 36


@pytest.mark.parametrize("most", [5, 8, 40])
def test_a_name_is_shortened_in_its_middle(most: int) -> None:
    short = shortened("meta-llama/Llama-3.1-8B-Instruct", most)
    assert len(short) <= most
    assert short[0] == "m" and short[-1] == "t"


def test_curves_rise_to_all_requests_inside_the_drawing(simulated: Evidence) -> None:
    panels = distribution_panels(simulated.variants)
    assert len(panels) == 4
    for panel in panels:
        curves = [e for e in drawn(panel, "curve") if len(corners(e.get("d", ""))) > 2]
        assert len(curves) == len(SPEEDS)
        for curve in curves:
            xs, ys = zip(*corners(curve.get("d", "")), strict=True)
            assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True)
            assert min(xs) >= 0 and max(xs) <= WIDTH


def test_gaps_of_chunks_read_at_once_are_at_the_edge(tmp_path: Path) -> None:
    spec = LoadSpec(rate=1.0, requests=20, output_tokens=5)
    outcomes = [
        outcome(i, 1000.0 * i, [1000 * i + ms for ms in (100, 100, 120, 140, 940)], spec) for i in range(20)
    ]
    write_requests(tmp_path / "requests.parquet", outcomes)
    run = record("bench", "v", False, load=summarize(spec, outcomes, 1))
    panels = distribution_panels([Variant("v", bench=run, requests=tmp_path / "requests.parquet")])
    (_, curve) = drawn(next(panel for panel in panels if "ITL" in panel), "curve")
    xs = [x for x, _ in corners(curve.get("d", ""))]
    assert xs[0] == min(xs) == LEFT and max(xs) > WIDTH * 0.9


def test_every_variant_is_read_with_its_percentiles(simulated: Evidence) -> None:
    for panel in distribution_panels(simulated.variants):
        labels = [e.get("aria-label", "") for e in drawn(panel, "reading")]
        assert [label.split(",")[0] for label in labels] == list(SPEEDS)
        assert all("p50" in label and "p99" in label for label in labels)


def test_beaten_variants_are_hollow_and_say_by_whom(simulated: Evidence) -> None:
    plots = {(plot.x.key, plot.y.key): plot.markup for plot in pareto_plots(simulated)}
    by_size = plots["size", "kl"]
    assert len(drawn(by_size, "hollow")) == 2, "of three of one size, two lose more"
    label = next(
        e.get("aria-label", "") for e in drawn(by_size, "reading") if "w4a16-gptq" in e.get("aria-label", "")
    )
    assert label.endswith("beaten by w8a8, w4a16-asym")
    assert not drawn(plots["tpot", "kl"], "hollow"), "the faster an engine is here, the more it lost"


def test_no_two_variants_look_alike(simulated: Evidence) -> None:
    markup = pareto_plots(simulated)[0].markup
    shapes = {(e.tag, re.sub(r"[-\d. ]+", "", e.get("d", ""))) for e in drawn(markup, "dot")}
    hues = {e.get("class") for e in drawn(markup, "dot")}
    assert len(shapes) >= 3 and len(hues) == len(SPEEDS)


def test_the_knee_and_the_best_rate_are_drawn_where_they_are(simulated: Evidence) -> None:
    plots = rate_plots(simulated.variants)
    assert plots and plots.first == 0.9, "the percentile that the objective is on"
    for one in plots.found:
        assert knee_words(one.series) == f"knee {number(one.series.capacity)}/s"
        assert any("objective met up to" in line for line in series_words(one.series))
    rings, knees = drawn(plots.completion, "ring"), drawn(plots.completion, "knee")
    assert len(rings) == len(knees) == len(SPEEDS)
    assert [float(r.get("cx", "")) < float(k.get("x1", "")) for r, k in zip(rings, knees, strict=True)] == [
        True
    ] * 4


def test_a_run_below_the_knee_that_met_a_stall_is_not_hollow(simulated: Evidence) -> None:
    series = simulated.variants[0].series
    assert series and series.kept_rate
    stalled = series.runs[0].model_copy(update={"request_throughput": 0.5, "steady": None})
    plots = rate_plots(
        [Variant("one", series=series.model_copy(update={"runs": [stalled, *series.runs[1:]]}))]
    )
    beyond = [run for run in series.runs if run.rate and run.rate > series.kept_rate]
    assert plots and len(drawn(plots.completion, "hollow")) == len(beyond) == 1


def test_a_series_that_never_saturated_has_no_knee(simulated: Evidence) -> None:
    series = simulated.variants[0].series
    assert series
    kept = series.model_copy(update={"saturating_rate": None, "runs": series.runs[:2]})
    plots = rate_plots([Variant("one", series=kept)])
    assert plots and not drawn(plots.completion, "knee")
    assert series_words(kept)[0].startswith("knee above")


def forest(*tasks: TaskScore) -> str:
    (panel,) = forest_panels([Variant("v", eval=record("eval", "v", True, tasks=list(tasks)))])
    return panel


def test_a_part_of_few_items_does_not_set_the_scale() -> None:
    whole = task_score(True)
    part = task_score(True, "part").model_copy(
        update={"part_of": whole.task, "difference": Estimate(value=0.01, low=-2.0, high=2.0)}
    )
    bars = drawn(forest(whole, part), "interval")
    assert float(bars[0].get("x2", "")) - float(bars[0].get("x1", "")) > WIDTH / 3
    assert all(0 <= float(bar.get("x1", "")) <= float(bar.get("x2", "")) <= WIDTH for bar in bars)


def test_experts_share_a_cell_that_shows_the_worst() -> None:
    made = manifest(layers=1)
    experts = [
        made.modules[0].model_copy(
            update={"name": f"model.layers.0.mlp.experts.{i}.up_proj", "relative_error": error}
        )
        for i, error in enumerate((0.01, 0.09, 0.02))
    ]
    made.modules = [*made.modules[:2], *experts]
    (panel,) = layer_panels(
        [Variant("moe", checkpoint=Checkpoint(path=Path(), weight_bytes=1, manifest=made))]
    )
    titles = [e.findtext("title") or e.findtext("{*}title") for e in drawn(panel, "heat")]
    assert [t for t in titles if t and "expert" in t] == ["model.layers.0.mlp.experts.1.up_proj: 0.0900"]
