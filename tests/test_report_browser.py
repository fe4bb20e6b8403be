"""The report in a real browser: headless Chromium through Playwright; skipped where one of them is missing.

`apt-get install chromium` and `pip install playwright` (its own browsers are not needed).
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_report
from test_leaderboard import add
from test_report import HOSTILE, ML

from genrec_bench.benchmark import report

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path: apt-get install chromium")
of_one_tier = test_report.results


@pytest.fixture
def results(of_one_tier: Path) -> Path:
    """Those of the page's other tests, and a run of another tier."""
    add(of_one_tier, "larger", 0, [1, 1, 1, 1], method="tiger", family="generative", dataset=ML, tier="base")
    return of_one_tier


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page, and what it said and asked for meanwhile."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.said: list[str] = []
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.said.append(request.url))
        self.address = file.as_uri()
        self.page.goto(self.address)

    def names(self) -> list[str]:
        """The visible rows of the first table."""
        return self.page.locator("section[data-t='0'] .board tbody tr:visible th").all_inner_texts()


@pytest.fixture
def opened(browser: Any, results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    file = tmp_path_factory.mktemp("page") / "board.html"
    file.write_text(report.render(results), encoding="utf-8")
    one = Opened(browser, file)
    yield one
    assert [line for line in one.said if line not in (one.address, "data:,")] == []
    one.context.close()


def test_titles_are_text(opened):
    assert opened.names() == ["gold", "silver", HOSTILE, "bronze"]
    assert opened.page.locator("script").count() == 2


def test_sorting_by_mouse_and_keyboard(opened):
    page = opened.page
    params = page.locator("section[data-t='0'] th", has_text="train").first
    params.get_by_role("button").click()
    assert params.get_attribute("aria-sort") == "ascending"
    assert opened.names() == [HOSTILE, "silver", "gold", "bronze"]
    params.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert params.get_attribute("aria-sort") == "descending"
    assert opened.names() == ["gold", "silver", HOSTILE, "bronze"]  # what has no value stays last
    assert page.locator("section[data-t='0'] th[aria-sort]").count() == 1
    page.locator("section[data-t='0'] th", has_text="method").get_by_role("button").click()
    assert opened.names() == [HOSTILE, "gold", "silver", "bronze"]


def test_filters(opened):
    page, filters = opened.page, opened.page.locator(".filters")
    said = filters.locator("output")
    assert said.inner_text() == "4 of 4 tables, 7 of 7 rows"
    filters.get_by_label("Data set").select_option("ml-100k")
    assert said.inner_text() == "3 of 4 tables, 3 of 7 rows"
    filters.get_by_label("Protocol").select_option("20 candidates")
    assert page.locator("section[data-t]:visible h2").all_inner_texts() == [
        "MovieLens-100K\n20 candidates · tier tiny · 4 users · 1 seed"
    ]
    page.get_by_role("button", name="Show all").click()
    filters.get_by_label("Tier").select_option("base")
    assert page.locator("section[data-t]:visible h2").all_inner_texts() == [
        "MovieLens-100K\nfull ranking · seen items kept · tier base · 4 users · 1 seed"
    ]
    assert said.inner_text() == "1 of 4 tables, 1 of 7 rows"
    filters.get_by_label("Tier").select_option("tiny")
    assert said.inner_text() == "3 of 4 tables, 6 of 7 rows"
    page.get_by_role("button", name="Show all").click()
    filters.get_by_label("generative").uncheck()
    assert opened.names() == ["silver", HOSTILE]
    filters.get_by_label("generative").check()
    filters.get_by_label("Method").fill("SILV")
    assert opened.names() == ["silver"]
    assert said.inner_text() == "1 of 4 tables, 1 of 7 rows"


def test_provenance_is_one_click_away_and_one_key_back(opened):
    page = opened.page
    button = page.locator("section[data-t='0'] tbody tr", has_text="silver").get_by_role("button").nth(2)
    button.click()
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading", level=2).inner_text().startswith("silver\namazon2014-beauty · full ranking")
    assert dialog.locator("tr.asked").inner_text().startswith("Recall@10")
    text = dialog.inner_text()
    for fact in ("run1", "run2", "00ff", "aaaaaaaaaaaa", "amazon2014-beauty/sasrec/RUN/run.json", "Linux", "numpy 2"):
        assert fact in text
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("node => node === document.activeElement")
    page.locator("section[data-t='0'] tbody tr", has_text="alert(1)").get_by_role("button").first.click()
    assert "</script><script>alert(2)</script>" in page.get_by_role("dialog").inner_text()
    page.get_by_role("button", name="Close").click()
    page.locator("section[data-t='0'] .p[data-row='0']").first.click()
    assert page.get_by_role("dialog").get_by_role("heading", level=2).inner_text().startswith("gold")


def test_dark_by_the_system_and_by_choice(opened, browser):
    def colour(page: Any) -> str:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = colour(opened.page)
    button = opened.page.locator("#theme")
    button.click()
    button.click()
    assert button.inner_text() == "Theme: dark"
    dark = colour(opened.page)
    assert dark != light
    opened.page.reload()
    assert colour(opened.page) == dark
    other = Opened(browser, Path(opened.address.removeprefix("file://")), color_scheme="dark")
    assert colour(other.page) == dark
    other.page.emulate_media(media="print")
    assert colour(other.page) == light
    other.context.close()


def test_readable_without_scripts_and_on_a_narrow_screen(opened, browser):
    file = Path(opened.address.removeprefix("file://"))
    plain = Opened(browser, file, java_script_enabled=False)
    assert plain.page.locator("section[data-t='0'] tbody tr").count() == 4
    assert not plain.page.locator(".filters").is_visible()
    plain.context.close()
    phone = Opened(browser, file, viewport={"width": 390, "height": 844})
    assert phone.page.evaluate("document.documentElement.scrollWidth") <= 390
    phone.context.close()


def test_every_control_has_a_name(opened):
    unnamed = opened.page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, [role=img], [role=region]")].filter((node) => {
            const label = node.getAttribute("aria-label") || node.textContent.trim() || (node.labels && node.labels[0]);
            const by = node.getAttribute("aria-labelledby");
            return !label && !(by && document.getElementById(by));
        }).map((node) => node.outerHTML)"""
    )
    assert unnamed == []
