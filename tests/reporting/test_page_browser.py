"""The pages in Chromium: no error, no request, no overflow, no script, enough contrast."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakerun import HOSTILE, make_run, make_summary

from fmnist_tf.reporting.comparison import write_comparison
from fmnist_tf.reporting.page import write_data_page, write_report
from fmnist_tf.reporting.record import read_complete

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
pytestmark = pytest.mark.slow
PAGES = ("report", "many", "hostile", "comparison", "data")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    many = [f"class with a long name {k}" for k in range(40)]
    write_report(make_run(folder / "a", finetune=True), folder / "report.html")
    write_report(make_run(folder / "b", names=many, n=200), folder / "many.html")
    hostile = make_run(
        folder / "c", names=HOSTILE, weights__path="<script>document.title='pwned'</script>" * 40,
        data__warnings=["\x00" + "W" * 9000], command="<img src=x onerror=alert(1)> " + "x" * 9000,
    )  # fmt: skip
    write_report(hostile, folder / "hostile.html")
    runs = [hostile, make_run(folder / "d", seed=1)]
    write_comparison([*map(read_complete, runs)], folder / "comparison.html")
    facts = hostile.read_json("provenance.json")["data"]
    write_data_page(facts, make_summary(10), HOSTILE, folder / "data.html")
    return {name: folder / f"{name}.html" for name in PAGES}


def show(browser: Any, path: Path, *, width: int = 1280, theme: str = "light") -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get_log("performance")
    browser.get(path.as_uri())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_loads_itself_alone_and_without_an_error(browser, pages, name):
    show(browser, pages[name])
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    assert {url for url in requests if not url.startswith("data:")} == {pages[name].as_uri()}
    assert browser.get_log("browser") == []
    assert "pwned" not in browser.title
    assert browser.execute_script("return document.scripts.length") == 0
    sizes = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(sizes) > (0 if name == "comparison" else 20) - 1
    assert all(size >= 28 for size in sizes)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_never_overflows_sideways(browser, pages, name, width):
    show(browser, pages[name], width=width)
    inside, found = browser.execute_script(
        "const root = document.documentElement; return [root.clientWidth, root.scrollWidth]"
    )
    assert width - 20 < inside <= width
    assert found == inside
    # What is wider than the page scrolls inside a region; all else ends within the page.
    outside = browser.execute_script(
        "const end = document.documentElement.clientWidth;"
        "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg')"
        " && e.getBoundingClientRect().right > end).map(e => e.outerHTML.slice(0, 99))"
    )
    assert outside == []


@pytest.mark.parametrize(
    ("name", "width", "table"),
    [("report", 390, ".matrix"), ("many", 390, ".matrix"), ("comparison", 1280, "table")],
)
def test_a_table_is_seen_without_scrolling(browser, pages, name, width, table):
    show(browser, pages[name], width=width)
    inside, found = browser.execute_script(
        f"const region = document.querySelector('{table}').closest('.scroll');"
        "return [region.clientWidth, region.scrollWidth]"
    )
    assert found == inside < width


def test_a_number_of_the_matrix_shows_its_images_alone(browser, pages):
    show(browser, pages["report"])
    visible = "return [...document.querySelectorAll('.cell')].filter(c => c.offsetHeight > 0)"
    (first,) = browser.execute_script(f"{visible}.map(c => c.id)")
    link = browser.find_elements("css selector", ".matrix .miss a")[-1]
    chosen = link.get_attribute("href").split("#")[1]
    assert chosen != first
    browser.execute_script("arguments[0].click()", link)
    assert browser.execute_script(f"{visible}.map(c => c.id)") == [chosen]
    top, bottom = browser.execute_script(
        f"const box = document.getElementById('{chosen}').getBoundingClientRect();"
        "return [box.top, box.bottom]"
    )
    assert 0 < top < bottom < 900


def test_dark_and_light_differ_and_both_can_be_read(browser, pages):
    seen = {}
    for theme in ("light", "dark"):
        show(browser, pages["report"], theme=theme)
        seen[theme] = browser.execute_script(
            """
            const style = (query) => getComputedStyle(document.querySelector(query));
            return {
              paper: style('body').backgroundColor, ink: style('body').color,
              axis: style('svg.chart text').fill, image: style('img.plain').filter,
            };
            """
        )
        paper = seen[theme]["paper"]
        assert contrast(paper, seen[theme]["ink"]) > 12, theme
        assert contrast(paper, seen[theme]["axis"]) > 7
        colours = browser.execute_script(
            "return [...document.querySelectorAll('.matrix td, .lead, figcaption, .tile dd')].map("
            "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor, e.className])"
        )
        texts = [(ink, back) for ink, back, name in colours if name != "none"]
        assert min(contrast(paper, ink, over=back) for ink, back in texts) > 4.5
    assert all(seen["light"][key] != seen["dark"][key] for key in seen["light"])


def test_the_keyboard_reaches_the_skip_link_the_contents_and_the_tables(browser, pages):
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["report"])
    stops = []
    for _ in range(60):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        element = browser.switch_to.active_element
        stops.append((element.tag_name, element.get_attribute("class") or element.text))
        if element.tag_name == "body":
            break
        outline = "return getComputedStyle(document.activeElement).outline"
        assert "solid 3px" in browser.execute_script(outline), stops[-1]
        if len(stops) == 1:
            assert element.location["y"] >= 0  # the skip link comes into sight
    assert stops[0] == ("a", "skip")
    assert stops[1] == ("a", "Result")
    assert ("div", "scroll") in stops
    assert "summary" in {tag for tag, _ in stops}

    show(browser, pages["report"])
    browser.switch_to.active_element.send_keys(Keys.TAB)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.switch_to.active_element.get_attribute("id") == "main"


def test_print_shows_everything_on_white(browser, pages):
    show(browser, pages["report"], theme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    paper, nav, command = browser.execute_script(
        "const [n, d] = ['nav', 'details'].map(q => document.querySelector(q));"
        "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(n).display,"
        " d.scrollHeight]"
    )
    assert (paper, nav) == ("rgb(255, 255, 255)", "none")
    assert command > 40  # closed details are open on paper
    assert browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def contrast(paper: str, ink: str, over: str = "rgba(0, 0, 0, 0)") -> float:
    """Return the contrast ratio of WCAG 2.2 of `ink` on `over`, which lies on `paper`."""
    ground, text, cover = (_numbers(colour) for colour in (paper, ink, over))
    seen = ground[:3] * (1 - cover[3]) + cover[:3] * cover[3]
    high, low = sorted((_luminance(seen), _luminance(text[:3])), reverse=True)
    return float((high + 0.05) / (low + 0.05))


def _numbers(colour: str) -> np.ndarray:
    numbers = np.array([*map(float, re.findall(r"[\d.]+", colour)), 1.0][:4])
    return numbers * [255, 255, 255, 1] if colour.startswith("color(srgb") else numbers


def _luminance(rgb: np.ndarray) -> float:
    fraction = rgb / 255
    linear = np.where(fraction <= 0.04045, fraction / 12.92, ((fraction + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))
