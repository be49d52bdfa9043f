"""The pages in a real browser: at a phone's and a desktop's width, light and dark."""

import shutil

import pytest

from reports.study_report import write_study_report
from tests.reports.fake_study import make_study
from tests.reports.fake_workspace import HOSTILE, build, make
from tests.reports.test_comparison import add_run
from tests.reports.test_own_attributes import TWELVE, TWO

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (apt install chromium)")
OVERFLOWING = """[...document.querySelectorAll("body *")]
    .filter(e => !e.closest(".scroll") && !e.closest("svg") && e.getBoundingClientRect().width)
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
BROKEN = "[...document.images].filter(e => !e.complete || !e.naturalWidth).length"
OUTSIDE = """[...document.querySelectorAll("svg")].filter(e => e.checkVisibility()).flatMap(e =>
    [...e.querySelectorAll("text")].filter(t => { const a = t.getBoundingClientRect(), b = e.getBoundingClientRect();
      return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1; })
    .map(t => t.textContent))"""
BLANK = """[...document.querySelectorAll("svg")].filter(e => e.checkVisibility()
    && (e.getBoundingClientRect().width < 100 || e.querySelectorAll("path, use, text").length < 5)).length"""
CONTRAST = """(() => { const value = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const page = value(getComputedStyle(document.body).backgroundColor);
    return Math.min(...[...document.querySelectorAll("main p, main td, main small, main svg text")].map(e => {
      const style = getComputedStyle(e), ink = value(e.closest("svg") ? style.fill : style.color);
      return e.closest(".warning") ? 21 : (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05); })); })()"""


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of the system."""
    playwright = pytest.importorskip("playwright.sync_api")
    with (
        playwright.sync_playwright() as running,
        running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as chromium,
    ):
        yield chromium


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of one run, of a hostile name without labels, of two runs, of a study, and of few and many attributes."""
    out = make(tmp_path_factory.mktemp("one"))
    hostile = make(tmp_path_factory.mktemp("hostile"), run=HOSTILE.replace("/", "|") * 3, synthetic=False)
    next((hostile / "runs").glob("*/labels.parquet")).unlink()
    arms = {"natural": 0.8, "a long name of an arm in one-word-of-many-letters-without-any-space": 0.55, "third": 0.5}
    study = make_study(tmp_path_factory.mktemp("study") / "out", arms=arms, seeds=(1, 2), failed=[("third", 2)])
    both = make(tmp_path_factory.mktemp("two"))
    add_run(both)
    return {
        "one": build(out).page,
        "hostile": build(hostile).page,
        "two": build(both, "first", "second").page,
        "study": write_study_report(study, "study"),
        "few attributes": build(make(tmp_path_factory.mktemp("few"), attributes=TWO)).page,
        "many attributes": build(make(tmp_path_factory.mktemp("many"), attributes=TWELVE)).page,
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(360, 780), (1280, 900)], ids=["phone", "desktop"])
@pytest.mark.parametrize(
    ("name", "figures"),
    [("one", 8), ("hostile", 2), ("two", 5), ("study", 6), ("few attributes", 5), ("many attributes", 16)],
)
def test_a_page_fits_is_complete_and_loads_nothing_from_elsewhere(browser, pages, name, figures, size, scheme):
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    messages, requests, tab = [], [], context.new_page()
    tab.on("console", lambda message: messages.append(message.text))
    tab.on("pageerror", lambda error: messages.append(str(error)))
    tab.on("dialog", lambda dialog: messages.append(dialog.message))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(pages[name].as_uri())
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [pages[name].as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert tab.evaluate(OVERFLOWING) == []
    assert tab.evaluate(BROKEN) == 0
    assert tab.locator("svg").count() == figures
    assert tab.evaluate(BLANK) == 0
    assert tab.evaluate(OUTSIDE) == []
    assert tab.evaluate(CONTRAST) >= 3  # of the least legible text, grey where nothing is claimed
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")
    context.close()


def test_a_printed_page_shows_what_is_folded_on_the_screen(browser, pages):
    tab = browser.new_page()
    tab.goto(pages["one"].as_uri())
    folded = "[...document.querySelectorAll('details:not([open]) img')].filter(e => e.checkVisibility()).length"
    assert tab.evaluate(folded) == 0
    tab.emulate_media(media="print")
    assert tab.evaluate(folded) > 10
    tab.close()
