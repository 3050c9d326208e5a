"""The page in a real browser: nothing fails, nothing is fetched, and it fits a phone and paper."""

import io

import pytest
from PIL import Image

from raycrt.evaluation.certified import Certified
from raycrt.evaluation.page import compare
from tests.browser import contrast
from tests.evaluation.page.runs import named_run, page_of

pytestmark = pytest.mark.slow

_TRIALS = """number,train.gamma,state,certified
0,0.01,complete,0.5
1,0.002,failed,
2,1e-05,complete,0.7
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = named_run(tmp_path_factory.mktemp("browser"))
    (run / "search").mkdir()
    (run / "search" / "trials.csv").write_text(_TRIALS)
    page_of(run)
    return run / "report" / "report.html"


def test_all_charts_are_drawn_and_all_pictures_are_there(opened, page):
    tab = opened(page)
    assert tab.locator(".chart svg").count() == 3
    assert tab.locator(".chart svg path").count() > 20
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert tab.locator("img").count() > 0 and tab.evaluate(broken) == 0
    assert tab.locator("nav a").count() == 10
    for link in tab.locator("nav a").all():
        assert tab.locator(link.get_attribute("href")).count() == 1


def test_names_are_shown_as_they_are(opened, page):
    tab = opened(page)
    text = tab.locator("#classes").inner_text()
    assert "<b>bold</b>" in text and "</script><script>alert(1)</script>" in text
    assert "{{ 7 * 7 }}" in text and tab.locator("#classes b").count() == 0


def test_tables_sort_by_numbers_both_ways_with_the_keyboard_too(opened, page):
    tab = opened(page)
    table = tab.locator("#search table").first

    def column(number: int) -> list[str]:
        return table.locator(f"tbody tr td:nth-child({number})").all_inner_texts()

    assert column(1) == ["2", "0", "1"]
    table.locator("th button", has_text="gamma").click()
    assert column(1) == ["2", "1", "0"]
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("gamma")
    table.locator("th button", has_text="gamma").press("Enter")
    assert column(1) == ["0", "1", "2"]
    table.locator("th button", has_text="certified").click()
    assert column(1) == ["0", "2", "1"]


def test_the_chart_tells_the_numbers_under_the_pointer(opened, page):
    tab = opened(page)
    box = tab.locator(".chart svg").first.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2)
    told = tab.locator("#vg-tooltip-element")
    told.wait_for(state="visible")
    assert {"radius", "clean", "certified", "attacked"} <= set(told.inner_text().split())


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_the_page_is_not_wider_than_the_screen(opened, page, width):
    tab = opened(page, viewport={"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('.chart svg')].map(s => s.getBoundingClientRect().right)"
    assert max(tab.evaluate(wide)) <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_told_from_the_paper(opened, page, scheme):
    tab = opened(page, color_scheme=scheme)
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    style = "e => getComputedStyle(e).color"
    for where in ("h1", "p.faint", "nav a", "thead th"):
        assert contrast(tab.locator(where).first.evaluate(style), paper) >= 4.5
    curves = tab.locator(".chart").first.locator(".mark-line path")
    stroke = "e => getComputedStyle(e).stroke"
    colours = {curve.evaluate(stroke) for curve in curves.all()}
    assert len(colours) == 3 and all(contrast(colour, paper) >= 3 for colour in colours)
    assert (contrast(paper, "rgb(0, 0, 0)") < 3) == (scheme == "dark")


def test_paper_is_white_and_holds_all_of_it(opened, page, tmp_path):
    tab = opened(page, color_scheme="dark")
    tab.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes()[:5] == b"%PDF-"
    tab.emulate_media(media="print")
    assert "255, 255, 255" in tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert tab.locator("nav").is_hidden()
    cut = "[...document.querySelectorAll('.table')].filter(t => t.scrollHeight > t.clientHeight)"
    assert tab.evaluate(f"{cut}.length") == 0


def test_a_comparison_draws_a_curve_for_each_run(opened, page, tmp_path):
    found = Certified.of(page.parent.parent / "certificates")
    file = compare.write({"<b>one</b>": found, "two": found, "3": found}, tmp_path)
    tab = opened(file)
    curves = tab.locator(".mark-line path")
    assert curves.count() == 3
    assert "<b>one</b>" in tab.locator(".chart").inner_text()
    assert tab.locator("table.sortable tbody tr").count() == 3
    assert "cannot be told apart" in tab.locator("main").inner_text()
    tab = opened(file, viewport={"width": 390, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    kept = tab.locator(".wide tbody th").first
    left = "e => e.getBoundingClientRect().left"
    before = kept.evaluate(left)
    tab.locator(".wide").first.evaluate("e => e.scrollLeft = 200")
    assert tab.locator(".wide").first.evaluate("e => e.scrollLeft") > 0
    assert kept.evaluate(left) == before


def test_a_table_that_goes_on_beyond_its_box_shows_that_it_does(opened, page):
    tab = opened(page, viewport={"width": 390, "height": 800}, color_scheme="light")
    box, row = tab.locator("#classes .table").first, tab.locator("#classes tbody tr").first

    def edge() -> int:
        """The lightest of the pixels within the right edge, below the text of a row."""
        row.scroll_into_view_if_needed()
        shown, line = box.bounding_box(), row.bounding_box()
        clip = {"x": shown["x"] + shown["width"] - 4, "y": line["y"] + line["height"] - 4}
        image = tab.screenshot(clip={**clip, "width": 2, "height": 2})
        return Image.open(io.BytesIO(image)).convert("L").getextrema()[1]

    assert box.evaluate("e => e.scrollWidth > e.clientWidth") and edge() < 220
    box.evaluate("e => e.scrollLeft = e.scrollWidth")
    assert edge() > 250
