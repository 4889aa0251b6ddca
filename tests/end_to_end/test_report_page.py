"""The report of a recorded comparison as a reader has it: on a phone, by keyboard alone, on a light and on a dark screen.

`make test` installs Chromium where it is missing. Without it these tests are skipped, and in CI they fail.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHONE = {"width": 360, "height": 740}
REACHABLE = "a[href], summary, [tabindex='0']"
SEEN = f"""() => [...document.querySelectorAll("{REACHABLE}")].filter(e => e.checkVisibility()).length"""
FOCUSED = f"""() => {{
    const all = [...document.querySelectorAll("{REACHABLE}")], now = document.activeElement;
    return [all.indexOf(now), getComputedStyle(now).outlineStyle];
}}"""


@pytest.fixture(scope="module")
def address(chromium, tmp_path_factory):
    directory = tmp_path_factory.mktemp("recorded") / "verse"
    shutil.copytree(ROOT / "docs" / "results" / "data" / "verse", directory)
    subprocess.run([sys.executable, "-m", "rlhf_bench", "report", str(directory)], check=True, cwd=ROOT, timeout=300)
    return (directory / "report.html").as_uri()


def test_on_a_phone_nothing_stands_out_to_the_side(chromium, address):
    page = chromium.new_page(viewport=PHONE)
    page.goto(address)
    for details in page.query_selector_all("details"):
        details.evaluate("e => e.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    # What is wider than that, such as a table, scrolls within a region that the keyboard reaches.
    lost = """() => [...document.querySelectorAll("main *, body *")].filter(e =>
        e.scrollWidth > e.clientWidth + 1 && /auto|scroll/.test(getComputedStyle(e).overflowX) && e.tabIndex < 0).length"""
    assert page.evaluate(lost) == 0
    page.close()


def test_the_keyboard_reaches_everything_in_order_and_shows_where_it_is(chromium, address):
    page = chromium.new_page()
    page.goto(address)
    visited = []
    for _ in range(page.evaluate(SEEN)):
        page.keyboard.press("Tab")
        place, outline = page.evaluate(FOCUSED)
        assert outline != "none", place
        visited.append(place)
    assert visited == sorted(set(visited)) and visited[0] >= 0
    page.close()


def test_light_and_dark_follow_the_readers_screen(chromium, address):
    found = {}
    for scheme in ("light", "dark"):
        page = chromium.new_page(color_scheme=scheme)
        page.goto(address)
        read = "getComputedStyle(document.body)[{!r}].match(/[0-9.]+/g).slice(0, 3).map(Number)"
        found[scheme] = [sum(page.evaluate(read.format(key))) for key in ("backgroundColor", "color")]
        page.close()
    assert found["light"][0] > found["light"][1] and found["dark"][0] < found["dark"][1]


def test_every_link_of_the_contents_shows_what_it_names(chromium, address):
    """Diagnostics are folded: a link opens its part."""
    page = chromium.new_page()
    page.goto(address)
    for link in [one.get_attribute("href") for one in page.query_selector_all("nav a")]:
        page.goto(address)
        page.click(f'nav a[href="{link}"]')
        assert page.query_selector(link).is_visible(), link
        page.wait_for_function("e => e.getBoundingClientRect().top < innerHeight", arg=page.query_selector(link))
    page.close()


def test_on_paper_nothing_is_folded(chromium, address):
    page = chromium.new_page()
    page.goto(address)
    seen = "document.querySelector('#training').checkVisibility()"
    assert not page.evaluate(seen)
    page.emulate_media(media="print")
    assert page.evaluate(seen)
    page.close()
