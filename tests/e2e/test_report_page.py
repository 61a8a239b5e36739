"""The report in a real browser: silent, alone, by keyboard, in both themes, on a phone and on paper.

The page has no script, so it is opened with JavaScript off; the browser's protocol can ask it all the same.

QDEPLOY_TEST_BROWSER   a Chromium or Chrome; without it, one on PATH or the one that `make browser` fetches
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qdeploy.bench.report import write_report
from tests.bench.report.simulated import SPEEDS, simulated_campaign

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make check")
pytestmark = pytest.mark.e2e

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"width": 360, "height": 740}
ACTIVE = "document.activeElement"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = os.environ.get("QDEPLOY_TEST_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=path)
        except playwright.Error as error:
            if path:
                raise
            pytest.skip(
                f"no Chromium or Chrome on this machine: make browser ({error.message.splitlines()[0]})"
            )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report([simulated_campaign(folder / "campaign")], folder / "report.html")
    return folder / "report.html"


class Visit:
    """The page as opened, with every request it makes and every word of its console."""

    def __init__(self, browser: Any, document: Path, **options: Any) -> None:
        self.requests: list[str] = []
        self.console: list[str] = []
        self.context = browser.new_context(**{"java_script_enabled": False} | options)
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("dialog", lambda dialog: self.console.append(f"dialog: {dialog.message}"))
        self.page.goto(document.as_uri())

    def shown(self, selector: str) -> list[Any]:
        return [found for found in self.page.locator(selector).all() if found.is_visible()]

    def background(self) -> str:
        return str(self.page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.fixture
def visit(browser: Any, document: Path) -> Iterator[Visit]:
    opened = Visit(browser, document)
    yield opened
    opened.context.close()


@pytest.mark.parametrize("scripts", [False, True])
def test_silent_and_alone(browser: Any, document: Path, scripts: bool) -> None:
    """With scripts on too: none of the hostile texts in it is run or asks for anything."""
    visit = Visit(browser, document, java_script_enabled=scripts)
    for place in range(1, 11):
        visit.page.click(f"label[for=places-1-{place}]")
    visit.page.wait_for_timeout(200)
    assert visit.requests == [document.as_uri()]
    assert visit.console == []
    assert visit.page.locator("script, img, iframe, object, a[href^=javascript]").count() == 0
    visit.context.close()


def test_the_policy_stops_what_would_slip_through(browser: Any, document: Path, tmp_path: Path) -> None:
    html = document.read_text().replace("<main", "<script>alert(1)</script><img src=http://x.example/y><main")
    (tmp_path / "slip.html").write_text(html)
    visit = Visit(browser, tmp_path / "slip.html", java_script_enabled=True)
    visit.page.wait_for_timeout(200)
    refused = [line for line in visit.console if "violates the following Content Security Policy" in line]
    assert len(refused) == len(visit.console) == 2, "the script and the picture, and no dialog"
    visit.context.close()


def test_the_axes_of_the_front_are_chosen_by_keyboard(visit: Visit) -> None:
    assert len(visit.shown(".tradeoff figure")) == 1
    assert visit.page.locator("figure.if-accuracy.if-throughput").is_visible()
    visit.page.focus("#pick-throughput")
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator("figure.if-accuracy.if-objective").is_visible()
    visit.page.focus("#pick-accuracy")
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.locator("figure.if-kl.if-objective").is_visible()
    assert len(visit.shown(".tradeoff figure")) == 1


def test_places_of_disagreement_are_walked_by_arrow_keys(visit: Visit) -> None:
    group = visit.page.locator(".places").first
    group.locator("input").first.focus()
    for key, place in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2)):
        visit.page.keyboard.press(key)
        assert _checked(group) == place
        assert [a.get_attribute("aria-label") for a in group.locator("article").all() if a.is_visible()] == [
            f"Place {place} of 10"
        ]


def _checked(group: Any) -> int:
    return int(group.locator("input:checked").get_attribute("id").rpartition("-")[2])


def test_a_reading_is_shown_while_it_has_the_focus(visit: Visit) -> None:
    panel = visit.page.locator("#latency svg:has(.curve)").first
    words = "getComputedStyle(e.querySelector('.readout')).opacity"
    readings = panel.locator(".reading")
    assert readings.count() == len(SPEEDS)
    readings.nth(1).focus()
    seen = [readings.nth(i).evaluate(f"e => {words}") for i in range(len(SPEEDS))]
    assert seen == ["0", "1", "0", "0"]
    assert "p50" in readings.nth(1).get_attribute("aria-label")


def test_every_part_is_reached_by_tab_and_seen_to_be(visit: Visit) -> None:
    expected = {_name(found) for found in visit.shown(".reading, nav a, summary")}
    reached: set[str] = set()
    for _ in range(400):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate(f"{ACTIVE} === document.body"):
            break
        focused = visit.page.locator(":focus")
        reached.add(_name(focused))
        assert focused.evaluate(MARKED), f"no sign of the focus on {_name(focused)}"
    assert expected <= reached


MARKED = """e => {
  const shown = n => n && getComputedStyle(n).outlineStyle !== "none";
  const words = e.querySelector(".readout");
  return shown(e) || shown(e.nextElementSibling) || (words && getComputedStyle(words).opacity === "1");
}"""


def _name(found: Any) -> str:
    return str(found.evaluate("e => e.getAttribute('aria-label') || e.textContent || e.id"))


def test_dark_by_the_system_or_by_choice(browser: Any, document: Path) -> None:
    light, dark = (Visit(browser, document, color_scheme=scheme) for scheme in ("light", "dark"))
    day, night = light.background(), dark.background()
    assert day != night
    light.page.click("label[for=theme-dark]")
    dark.page.click("label[for=theme-light]")
    assert (light.background(), dark.background()) == (night, day)
    light.context.close()
    dark.context.close()


def test_fits_a_phone(browser: Any, document: Path) -> None:
    visit = Visit(browser, document, viewport=PHONE)
    assert visit.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    for svg in visit.shown("svg"):
        box = svg.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    visit.context.close()


def test_on_paper_nothing_is_left_to_choose(visit: Visit) -> None:
    visit.page.emulate_media(media="print")
    assert len(visit.shown(".places article")) == visit.page.locator(".places article").count() == 30
    assert len(visit.shown(".tradeoff figure")) == 10
