"""The report as a browser shows it: Chromium without a head, with scripts and without."""

import shutil

import pytest
from small_runs import quick

from sdplip.train import load
from sdplip.train.reporting.page import report
from sdplip.train.runs import compare

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or chrome on the PATH")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    splits = load("digits")
    folder = tmp_path_factory.mktemp("runs")
    configs = [quick(layer, splits) for layer in ("sll", "lben", "nemon", "unconstrained")]
    compare(configs, splits, folder)
    (folder / "report.html").write_text(report([folder]), encoding="utf-8")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_every_figure_is_seen_and_nothing_is_fetched(browser, file, scripts, scheme, size):
    width, height = SIZES[size]
    page = browser.new_page(
        java_script_enabled=scripts,
        color_scheme=scheme,
        viewport={"width": width, "height": height},
    )
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    figures = page.locator("figure").all()
    assert len(figures) == 8
    for figure in figures:
        picture = figure.locator("svg").bounding_box()
        assert picture["width"] > 300 and picture["height"] > 100
        assert figure.locator("figcaption").bounding_box()["height"] > 10
        numbers = figure.locator("table")
        assert not numbers.is_visible()
        # Opens without a script.
        figure.locator("summary").click()
        assert numbers.is_visible() and numbers.bounding_box()["height"] > 20
    for formula in page.locator("math").all():
        assert formula.bounding_box()["height"] > 10
    # What is wide scrolls inside itself; the page does not.
    assert page.locator("article").bounding_box()["width"] <= width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert asked == [file.as_uri()] and said == []
    page.close()
