"""The page of an audit: what is in the file, and a whole session in a real browser, from the plan to the import."""

import base64
import hashlib
import io
import json
import re

import polars as pl
import pytest
from PIL import Image

import sql
from reports.audit_page import data_uri
from shards import tar
from shards.audit import AuditPlan
from shards.audit_tables import read_plan_table, read_ratings
from shards.documents import read_document
from shards.workspace import Workspace
from tests.pipeline.cli.helpers import error_line, fairface
from tests.reports.fake_workspace import attribute_toml, make, page_text
from tests.reports.test_browser import BROKEN, CHROMIUM, CONTRAST, OVERFLOWING, browser

__all__ = ["browser"]
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here (apt install chromium)")
FACES = 30
TONES = [str(tone) for tone in range(1, 11)]


def make_page(out, *words):
    """Plan an audit of the samples below an OUT folder, and write its page; returns its path."""
    fairface("audit", "plan", "--out", out, *(() if "--labels" in words else ("--labels", FACES)), *words)
    return write_page(out)


def write_page(out):
    fairface("audit", "page", "--out", out)
    return Workspace(out).run("first").audit.page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with two questions about each of 30 faces."""
    out = make(tmp_path_factory.mktemp("audit") / "out", n=60)
    return make_page(out, "--attribute", "gender", "--attribute", "skin_tone")


def script_data(page) -> dict:
    """What the page's script knows."""
    return json.loads(re.search(r'<script type="application/json" id="audit">(.*?)</script>', page.read_text())[1])


def test_the_file_has_the_faces_and_nothing_else_about_them(page):
    data, audit = script_data(page), Workspace(page.parents[3]).run("first").audit
    faces = read_plan_table(audit, read_document(audit.plan_document, AuditPlan))
    assert [face["number"] for face in data["faces"]] == list(range(FACES))
    assert {tuple(face) for face in data["faces"]} == {("attributes", "image", "number")}
    members = tar.read_members(page.parents[1] / "samples" / "s.tar", faces["key"])
    for face, key in zip(data["faces"], faces["key"], strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(face["image"].partition(",")[2])))
        assert image.tobytes() == Image.open(io.BytesIO(members[key])).tobytes()
    html = page.read_text()
    assert not [name for name in (*faces["key"], *faces["stratum"]) if name in html]


def test_only_its_own_script_may_run_and_nothing_is_fetched(page):
    html = page.read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', html)
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    assert [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts] == re.findall(
        "sha256-([^']+)'", policy
    )
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in policy
    assert not re.search(r"(src|href)=[\"']?(?!data:)\w+:", html)


def test_metadata_of_images_stay_out_of_the_file(tmp_path):
    out = make(tmp_path / "out", n=60)
    image, exif, content = Image.new("RGB", (900, 600), "red"), Image.Exif(), io.BytesIO()
    exif[0x010E], exif[0x0112] = "a secret description", 6  # shown turned by 90 degrees
    image.save(content, "jpeg", exif=exif, comment=b"a secret comment")
    keys = [f"{number:09d}" for number in range(60)]
    with tar.TarWriter(out / "runs" / "first" / "samples" / "s.tar") as writer:
        for key in keys:
            writer.add(key, "jpg", content.getvalue())
    page = make_page(out)
    data = base64.b64decode(script_data(page)["faces"][0]["image"].partition(",")[2])
    assert b"secret" in content.getvalue()
    assert b"secret" not in data
    assert Image.open(io.BytesIO(data)).size == (341, 512)


def test_the_same_plan_gives_the_same_file(page):
    before = page.read_bytes()
    assert write_page(page.parents[3]).read_bytes() == before


def test_titles_and_names_are_escaped(tmp_path):
    hostile = '</script><script>alert(1)</script>"'
    own = attribute_toml("hair", {"red": "{}", "brown": "{}"}, title=hostile, headline=True)
    out = make(tmp_path / "out", n=60, attributes=own)
    html = make_page(out, "--attribute", "hair").read_text()
    assert hostile not in html
    assert html.count("<script") == 2
    assert script_data(Workspace(out).run("first").audit.page)["attributes"]["hair"]["title"] == hostile


def test_a_face_without_an_image_is_an_error(tmp_path):
    out = make(tmp_path / "out", n=60)
    (out / "runs" / "first" / "samples" / "s.tar").write_bytes(b"")
    fairface("audit", "plan", "--out", out, "--labels", FACES)
    message = error_line("audit", "page", "--out", out)
    assert "30 of the plan's faces in" in message
    assert "can't be read: run `fairface verify`" in message
    assert not Workspace(out).run("first").audit.page.exists()


class Rater:
    """A person in front of the page, who uses the keyboard alone."""

    def __init__(self, browser, page, name, *, script="", **options):
        self.context = browser.new_context(accept_downloads=True, **options)
        self.context.add_init_script(script)
        self.tab, self.messages, self.requests = self.context.new_page(), [], []
        self.tab.on("console", lambda message: self.messages.append(message.text))
        self.tab.on("pageerror", lambda error: self.messages.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.open(page, name)

    def open(self, page, name):
        self.tab.goto(page.as_uri())
        self.type_name(name)

    def type_name(self, name):
        self.tab.keyboard.press("Control+A")
        self.tab.keyboard.type(name)  # the focus is on the field
        self.tab.keyboard.press("Enter")

    def press(self, *keys):
        for key in keys:
            self.tab.keyboard.press(key)

    @property
    def question(self) -> str:
        return self.tab.locator("#title").inner_text()

    @property
    def progress(self) -> str:
        return self.tab.locator("#progress-text").inner_text()

    @property
    def shown(self) -> list[str]:
        """The classes as they are ordered on the screen."""
        return self.tab.locator("#classes .class").all_text_contents()

    @property
    def face(self) -> str:
        """The face on the screen."""
        return self.tab.locator("#face").get_attribute("src")

    def save(self, path):
        with self.tab.expect_download() as download:
            self.press("s")
        download.value.save_as(path)
        return download.value.suggested_filename


@needs_chromium
def test_a_session_of_thirty_faces_by_keyboard_is_resumed_saved_and_imported(browser, page, tmp_path):
    rater, expected, order = Rater(browser, page, "Ann B."), [], []
    for number in range(FACES):
        assert rater.question == "Gender"
        assert rater.progress == f"{2 * number} of {2 * FACES} answers"
        gender = "can't tell" if number == 4 else ["female", "male"][number % 2]
        rater.press("c" if number == 4 else str(1 + number % 2))
        assert rater.question == "Skin tone (Monk)"
        rater.press("2", "z")  # a mistake, undone
        assert rater.question == "Skin tone (Monk)"
        rater.press("ArrowDown", "x", "Control+3")  # no keys of the page
        tone = 1 + number % 10
        if number == 12:  # reloads in the middle of a face
            rater.tab.reload()
            assert f"{2 * number + 1} of 60 answers by Ann B. are kept" in rater.tab.locator("#resume").inner_text()
            rater.press("Enter")  # the name is there
            assert rater.question == "Skin tone (Monk)"
        order.append(rater.face)
        rater.press(str(tone % 10))
        expected.append((gender, str(tone)))
    assert rater.tab.locator("#done-title").inner_text() == "All faces are labelled. Thank you!"
    assert rater.progress == "60 of 60 answers"
    assert rater.save(tmp_path / "ann.csv") == "audit-first-Ann_B..csv"
    assert rater.messages == []
    assert {url for url in rater.requests if not url.startswith("data:")} == {page.as_uri()}
    rater.context.close()

    out = page.parents[3]
    printed = fairface("audit", "import", "--out", out, tmp_path / "ann.csv")
    assert 'Ann B.: 60 answers, 1 of them "can\'t tell"\n' in printed
    audit = Workspace(out).run("first").audit
    plan = read_document(audit.plan_document, AuditPlan)
    ratings, faces = read_ratings(audit, plan), read_plan_table(audit, plan)
    answers = ratings.pivot("attribute", index="key", values="group")
    stored = {key: (gender or "can't tell", tone) for key, gender, tone in answers.iter_rows()}
    keys = dict(zip((face["image"] for face in script_data(page)["faces"]), faces["key"], strict=True))
    assert len(keys) == FACES
    assert [stored[keys[image]] for image in order] == expected
    audit.ratings_document.unlink()
    audit.ratings.unlink()


@needs_chromium
def test_answers_change_a_wrong_verdict(browser, tmp_path):
    """Half of those whom the labeller takes for women are men; the rater sees it by the colour of the image."""
    out = make(tmp_path / "out", n=400, women=0.8)  # 60 % of the training faces are women
    labels = pl.read_parquet(out / "runs" / "first" / "labels.parquet")
    is_woman = (labels["gender"] == "female") & (labels["key"].hash(1) % 2 == 0)
    with tar.TarWriter(out / "runs" / "first" / "samples" / "s.tar") as writer:
        for key, truth in zip(labels["key"], is_woman, strict=True):
            content = io.BytesIO()
            Image.new("RGB", (8, 8), "red" if truth else "blue").save(content, "png")
            writer.add(key, "png", content.getvalue())
    page = make_page(out, "--attribute", "gender", "--labels", 120)
    rater = Rater(browser, page, "Ann")
    red = data_uri(Image.new("RGB", (8, 8), "red"))
    while rater.tab.locator("#question").is_visible():
        rater.press("1" if rater.face == red else "2")
    rater.save(tmp_path / "ann.csv")
    rater.context.close()
    fairface("audit", "import", "--out", out, tmp_path / "ann.csv")
    fairface("report", "--out", out)
    rows = sql.ask(sql.connect(Workspace(out)), "audit", attribute="gender").rows_by_key(
        "group", named=True, unique=True
    )
    assert (rows["female"]["unaudited_verdict"], rows["female"]["verdict"]) == ("amplified", "reduced")
    assert rows["female"]["audited_low"] <= is_woman.mean() <= rows["female"]["audited_high"]
    assert rows["female"]["raw"] == pytest.approx(0.8, abs=0.05)
    assert "women (amplified by the labeller, reduced by the audit)" in page_text(out)


@needs_chromium
def test_order_of_faces_and_classes_depends_on_the_rater_and_keys_do_not(browser, page):
    orders, first_faces = {}, {}
    for name in "abcd":
        rater = Rater(browser, page, name)
        first_faces[name] = rater.face
        rater.press("2")
        orders[name] = rater.shown
        assert rater.tab.locator("#status").inner_text() == "Gender: male"
        rater.press("1")
        assert rater.tab.locator("#status").inner_text() == "Skin tone (Monk): 1"
        rater.context.close()
    assert len(set(first_faces.values())) > 2
    assert sorted(set(map(tuple, orders.values()))) == sorted([tuple(TONES), tuple(reversed(TONES))])
    again = Rater(browser, page, "  A ")  # the same person, in capitals
    assert again.face == first_faces["a"]
    again.context.close()


@needs_chromium
def test_buttons_are_named_grouped_and_reached_by_tab(browser, page):
    rater = Rater(browser, page, "Ann")
    tab = rater.tab
    assert tab.get_by_role("group", name="Gender").get_by_role("button").count() == 2
    assert tab.evaluate("document.activeElement.id") == "title"
    rater.press("Tab", "Enter")  # the first class, after the question
    assert rater.progress == "1 of 60 answers"
    assert tab.evaluate("document.activeElement.id") == "title"  # the next question is read, not lost
    assert tab.get_by_role("status").filter(has_text="Gender: ").count() == 1
    assert tab.get_by_role("progressbar", name="1 of 60 answers").count() == 1
    tab.get_by_role("group", name="Skin tone (Monk)").get_by_role("button", name="10", exact=True).click()
    tab.get_by_role("button", name="Can't tell").click()
    assert rater.progress == "3 of 60 answers"
    tab.get_by_role("button", name="Undo").click()
    assert rater.progress == "2 of 60 answers"
    tab.get_by_label("Answer with the keys").uncheck()
    rater.press("1", "c", "z")
    assert rater.progress == "2 of 60 answers"
    rater.context.close()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(360, 740), (1280, 860), (740, 360)], ids=["phone", "desktop", "phone on its side"])
def test_the_page_fits_the_screen(browser, page, size, scheme):
    rater = Rater(browser, page, "", viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)

    def check():
        assert rater.tab.evaluate("document.documentElement.scrollWidth") <= size[0]
        assert rater.tab.evaluate(OVERFLOWING) == []
        assert rater.tab.evaluate(BROKEN) == 0
        assert rater.tab.evaluate(CONTRAST) >= 4.5

    assert rater.tab.locator("#start").is_visible()  # a name is needed
    rater.type_name("Ann")
    rater.press("1")
    check()
    box = rater.tab.locator("#face").bounding_box()
    assert box["width"] == pytest.approx(box["height"])
    assert box["width"] >= 150
    last = rater.tab.locator("#classes button").last.bounding_box()
    assert last["y"] + last["height"] <= size[1]  # every class is seen without scrolling
    assert rater.messages == []
    rater.context.close()


@needs_chromium
def test_raters_and_plans_do_not_share_answers(browser, page, tmp_path):
    other = make_page(make(tmp_path / "out", n=60), "--seed", 1, "--attribute", "gender", "--attribute", "skin_tone")
    rater = Rater(browser, page, "Ann")
    rater.press("1", "2", "1")
    rater.open(page, "Bo")
    assert rater.progress == "0 of 60 answers"
    rater.open(other, "Ann")
    assert rater.progress == "0 of 60 answers"
    rater.open(page, "ann")
    assert rater.progress == "3 of 60 answers"
    rater.context.close()


@needs_chromium
def test_an_extended_page_goes_on_and_the_old_page_loses_nothing(browser, tmp_path):
    out = make(tmp_path / "out", n=60)
    page = make_page(out, "--attribute", "gender")
    old = page.rename(page.with_name("old.html"))
    rater = Rater(browser, old, "Ann")
    rater.press(*"1" * 30)
    assert rater.tab.locator("#done").is_visible()
    fairface("audit", "plan", "--out", out, "--extend", 10)
    write_page(out)
    rater.open(page, "Ann")
    assert rater.progress == "30 of 40 answers"
    rater.press(*"2" * 10)
    rater.open(old, "Ann")
    assert rater.progress == "30 of 30 answers"
    rater.press("z", "2")
    rater.open(page, "Ann")
    assert rater.progress == "40 of 40 answers"
    rater.save(tmp_path / "ann.csv")
    fairface("audit", "import", "--out", out, tmp_path / "ann.csv")
    rater.context.close()


@needs_chromium
def test_two_tabs_of_a_rater_keep_each_others_answers(browser, page):
    rater = Rater(browser, page, "Ann")
    second = rater.context.new_page()
    second.goto(page.as_uri())
    second.keyboard.press("Enter")
    rater.press("1", "2")
    second.get_by_text("2 of 60 answers").wait_for()
    second.keyboard.press("1")
    rater.tab.get_by_text("3 of 60 answers").wait_for()
    rater.context.close()


@needs_chromium
def test_a_browser_that_keeps_nothing_says_so(browser, page, tmp_path):
    blocked = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('blocked'); } })"
    rater = Rater(browser, page, '=HYPERLINK("x"), Bo', script=blocked)
    assert rater.tab.get_by_role("alert").inner_text().startswith("This browser does not keep your answers")
    rater.press("1", "2")
    rater.save(tmp_path / "bo.csv")
    assert "'=HYPERLINK" in (tmp_path / "bo.csv").read_text()  # a spreadsheet shows it
    out = page.parents[3]
    printed = fairface("audit", "import", "--out", out, tmp_path / "bo.csv")
    assert '=HYPERLINK("x"), Bo: 2 answers, 0 of them "can\'t tell", 58 questions left' in printed
    assert rater.messages == []
    rater.context.close()
    for path in (Workspace(out).run("first").audit.ratings_document, Workspace(out).run("first").audit.ratings):
        path.unlink()


@needs_chromium
def test_classes_beyond_the_tenth_have_buttons(browser, tmp_path):
    classes = {f"style {number}": "{}" for number in range(12)}
    out = make(tmp_path / "out", n=60, attributes=attribute_toml("hair", classes, title="Hair"))
    rater = Rater(browser, make_page(out, "--attribute", "hair"), "Ann")
    rater.press("0")
    assert rater.tab.locator("#status").inner_text() == "Hair: style 9"
    rater.tab.get_by_role("button", name="style 11").click()
    assert rater.tab.locator("#status").inner_text() == "Hair: style 11"
    rater.context.close()
