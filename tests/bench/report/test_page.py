"""The report as a document: well-formed, self-contained, honest about what is missing."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qdeploy.bench.load.figures.percentiles import distribution as distribution_of
from qdeploy.bench.records import Decision, Estimate, Standing, load_record
from qdeploy.bench.report import write_report
from qdeploy.bench.report.places import visible
from qdeploy.errors import ComparisonError, UsageError

from .conftest import CampaignMaker, load_result, record
from .simulated import HOSTILE, SPEEDS, simulated_campaign

VOID = {"meta", "br", "link", "input"}
LOADERS = {"script", "link", "img", "iframe", "object", "embed", "source", "video", "audio", "base"}


class Document(HTMLParser):
    """Checks that tags balance and collects what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open, f"unclosed {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def report(tmp_path: Path, *folders: Path) -> str:
    write_report(folders, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a campaign with everything in it."""
    folder = tmp_path_factory.mktemp("simulated")
    write_report([simulated_campaign(folder / "campaign")], folder / "report.html")
    return folder / "report.html"


def test_well_formed_and_self_contained(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    html = report(tmp_path, make_campaign("w4", "w8"))
    document = Document(html)
    assert not [tag for tag, _ in document.tags if tag in LOADERS]
    assert not [a for _, a in document.tags if (a.get("href") or "#")[0] != "#" or "src" in a]
    assert not re.search(r"url\(|@import", html)


def test_its_policy_allows_its_own_style_and_nothing_else(
    tmp_path: Path, make_campaign: CampaignMaker
) -> None:
    html = report(tmp_path, make_campaign("w4", "w8"))
    style = html.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [a["content"] or "" for tag, a in Document(html).tags if "http-equiv" in a]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")
    assert not [a for _, a in Document(html).tags if "style" in a or any(key.startswith("on") for key in a)]


def test_ids_are_unique_and_links_lead_somewhere(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    document = Document(report(tmp_path, make_campaign("w4", "w8")))
    ids = [a["id"] for _, a in document.tags if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = [v for _, a in document.tags for v in (a.get("aria-labelledby") or "").split()]
    wanted += [(a["href"] or "")[1:] for _, a in document.tags if "href" in a]
    assert set(wanted) <= set(ids)


def test_accessible_tables_and_pictures(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    html = report(tmp_path, make_campaign())
    tags = [tag for tag, _ in Document(html).tags]
    assert tags.count("caption") == tags.count("table")
    assert tags.count("desc") == tags.count("svg") > 4
    assert all("scope" in a for tag, a in Document(html).tags if tag == "th")


def test_hostile_names_are_text(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    html = report(tmp_path, make_campaign(title="<script>alert(1)</script>"))
    assert "<script" not in html
    assert "<script>alert(1)</script>" in Document(html).text


def test_what_a_model_wrote_is_text(simulated: Path) -> None:
    document = Document(simulated.read_text())
    assert not [tag for tag, _ in document.tags if tag in {"script", "img"}]
    for text in HOSTILE:
        assert visible(text) in "".join(document.words)


def test_four_variants_are_under_a_megabyte(simulated: Path) -> None:
    assert simulated.stat().st_size < 1_000_000


def test_what_is_drawn_over_the_rate_is_said_too(simulated: Path) -> None:
    html = simulated.read_text()
    assert html.count('class="knee') == len(SPEEDS) * (1 + 2 * 3), (
        "once over completions, and over three latencies by two percentiles"
    )
    assert "objective 400 ms" in html and "objective 1,500 ms" in html
    assert Document(html).text.count("objective met up to") >= len(SPEEDS)


def test_a_series_given_by_itself(tmp_path: Path, simulated: Path) -> None:
    html = report(tmp_path, simulated.parent / "campaign" / "variants" / "w8a8" / "series")
    assert "Completed over offered rate" in html


def test_a_series_that_was_never_finished_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "series.json").write_text("{}")
    with pytest.raises(ComparisonError, match="series without its runs"):
        report(tmp_path, tmp_path / "series")


def test_refused_percentile_says_what_it_needs(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    few = Document(report(tmp_path, make_campaign(requests=60))).text
    assert "needs 299 requests" in few


def test_enough_requests_are_not_refused(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    assert "needs 299" not in Document(report(tmp_path, make_campaign(requests=400))).text


def test_too_few_requests_to_compare(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    assert "too few requests to say" in Document(report(tmp_path, make_campaign(requests=5))).text


def test_other_loads_are_not_compared(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    campaign = make_campaign()
    folder = campaign / "variants" / "baseline" / "bench"
    other = load_record(folder)
    assert other.load
    other.load.rate = 7.0
    other.save(folder)
    text = Document(report(tmp_path, campaign)).text
    assert "not compared: the baseline had another load" in text
    assert "×0.706" not in text


def test_a_client_that_fell_behind_is_told_first(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    campaign = make_campaign()
    folder = campaign / "variants" / "baseline" / "bench"
    slow = load_record(folder)
    assert slow.load
    slow.load.client_limited = True
    slow.save(folder)
    text = Document(report(tmp_path, campaign)).text
    assert text.index("fell behind its schedule while baseline was measured") < text.index("Size and memory")


def test_a_load_run_that_is_invalid_is_told(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    campaign = make_campaign()
    folder = campaign / "variants" / "baseline" / "bench"
    hit = load_record(folder)
    assert hit.load
    hit.load.invalid = ["half of the prompt tokens came from the prefix cache"]
    hit.save(folder)
    text = Document(report(tmp_path, campaign)).text
    assert "The load run of baseline is invalid: half of the prompt tokens" in text


def test_the_records_of_the_load_generator_are_shown(tmp_path: Path) -> None:
    """The page looks percentiles up by the very keys that the load generator writes."""
    made = distribution_of([10.0 + i for i in range(400)])
    load = load_result(10, 400)
    load.metrics = {"tpot_ms": made}
    (tmp_path / "run").mkdir()
    record("bench", "m", False, load=load).save(tmp_path / "run")
    text = Document(report(tmp_path, tmp_path / "run")).text
    assert "not taken" not in text
    assert "p99" in text


def test_a_metric_without_intervals_is_not_compared(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    campaign = make_campaign()
    for folder in campaign.glob("variants/*/bench"):
        run = load_record(folder)
        assert run.load
        run.load.metrics = {"itl_ms": distribution_of([10.0 + i for i in range(400)], independent=False)}
        run.save(folder)
    text = Document(report(tmp_path, campaign)).text
    assert "its samples depend on each other" in text
    assert "too few requests" not in text


def test_inconclusive_says_what_would_decide(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    text = Document(report(tmp_path, make_campaign())).text
    assert "accuracy is undecided" in text
    assert "whether it keeps 99.0 % of the baseline's accuracy is undecided" in text
    assert "1,480 items would decide" in text
    assert "not significant" in text


def test_says_that_one_run_has_no_run_to_run_interval(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    assert (
        "nothing here covers the variation between runs" in Document(report(tmp_path, make_campaign())).text
    )


@pytest.mark.parametrize("kind", ["bench", "eval", "verify"])
def test_a_missing_part_is_said_to_be_missing(
    tmp_path: Path, make_campaign: CampaignMaker, kind: str
) -> None:
    campaign = make_campaign()
    for folder in campaign.glob(f"variants/*/{kind}"):
        shutil.rmtree(folder)
    text = Document(report(tmp_path, campaign)).text
    missing = {"bench": "no load run", "eval": "no task was run", "verify": "Not run."}
    assert missing[kind] in text


def test_report_outlives_the_weights(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    campaign = make_campaign()
    for folder in campaign.glob("variants/*/checkpoint"):
        shutil.rmtree(folder)
    assert "Its checkpoint folder is not there" in Document(report(tmp_path, campaign)).text


def test_loose_run_folders_join_by_checkpoint(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    campaign = make_campaign()
    folders = [campaign / "variants" / v / k for v in ("w4a16-gptq", "baseline") for k in ("bench", "eval")]
    text = Document(report(tmp_path, *folders)).text
    assert "×0.706" in text
    assert text.index("w4a16-gptq") < text.index("is the baseline")


def test_one_run_alone_has_no_baseline(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    text = Document(report(tmp_path, make_campaign() / "variants" / "w4a16-gptq" / "bench")).text
    assert "No baseline among these runs" in text


def test_two_runs_of_a_kind_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        record("bench", "m", False).save(folder)
    with pytest.raises(ComparisonError, match="second bench run"):
        report(tmp_path, *folders)


def test_nothing_measured_is_an_error(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    campaign = make_campaign()
    for run in campaign.glob("variants/*/*/run.json"):
        run.unlink()
    with pytest.raises(ComparisonError, match="Nothing was measured"):
        report(tmp_path, campaign)


def test_same_evidence_same_bytes(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    campaign = make_campaign()
    assert report(tmp_path, campaign) == report(tmp_path, campaign)


def test_the_decision_is_the_first_thing_said(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    campaign = make_campaign("w4")
    assert "Which to deploy" not in report(tmp_path, campaign)
    standings = [
        Standing(name="baseline", verdict="pass", reasons=["is the baseline"], figure=Estimate(value=2.0)),
        Standing(name="w4", verdict="inconclusive", reasons=["<b>9 items</b> more would decide"]),
    ]
    Decision(
        objective="p99_ttft=1s at 2 requests/s",
        optimize="rate",
        verdict="inconclusive",
        recommended="baseline",
        headline="Deploy the 16-bit baseline for now.",
        standings=standings,
    ).save(campaign)
    html = report(tmp_path, campaign)
    text = Document(html).text
    said = [
        "Deploy the 16-bit baseline for now.",
        "2.00 requests/s",
        "<b>9 items</b>",
        "accuracy is undecided",
    ]
    places = [text.replace("\u00a0", " ").index(words) for words in said]
    assert places == sorted(places)
    assert "<b>" not in html


def test_output_folder_is_made(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    output = tmp_path / "new" / "report.html"
    write_report([make_campaign()], output)
    assert output.is_file()


def test_output_that_is_a_folder(tmp_path: Path, make_campaign: CampaignMaker) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        write_report([make_campaign()], tmp_path)
