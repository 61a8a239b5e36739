"""The table that `qdeploy run` prints."""

from __future__ import annotations

import shutil
from io import StringIO
from pathlib import Path

from rich.console import Console

from qdeploy.bench.campaign.summary import summary_rows, summary_table
from qdeploy.bench.report.collect import collect

from .conftest import CampaignMaker


def printed(campaign: Path) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(summary_table(summary_rows(collect([campaign]))))
    return console.export_text()


def test_one_column_a_variant(make_campaign: CampaignMaker) -> None:
    text = printed(make_campaign("w4", "w8"))
    assert text.count("CPUWNA16LinearKernel") == 2
    assert text.count("inconclusive") == 2


def test_a_variant_without_a_load_run_has_its_column(make_campaign: CampaignMaker) -> None:
    campaign = make_campaign("w4")
    shutil.rmtree(campaign / "variants" / "baseline" / "bench")
    assert "not measured" in printed(campaign)
