"""The demo in Chromium: a picture and a drawing are classified; nothing leaves the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_page_browser import browser  # noqa: F401
from toyrun import draw

from fmnist_tf.demo import main


def test_without_gradio_one_line_says_what_to_install(toy_run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["first"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install" in line


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """The address of a demo of a run with two classes, bars and squares; it ends by Ctrl-C."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("demo")
    for k, name in enumerate(("bar", "square")):
        (folder / "data" / name).mkdir(parents=True)
        for n, image in enumerate(draw(90, seed=k)[2 * k :: 3]):
            Image.fromarray(image.reshape(28, 28)).save(folder / "data" / name / f"{n}.png")
    words = "--backbone mlp --phase scratch --units 0 --epochs 8 --run r --batch-size 8".split()
    run = [sys.executable, "-m", "fmnist_tf"]
    common = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}}
    quiet = ["--quiet", "--wandb", "disabled"]
    subprocess.run([*run, "train", "--data", "data", *words, *quiet], check=True, **common)
    command = [*run, "demo", "r", "--quiet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **common) as process:
        yield process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


@pytest.fixture
def page(browser: Any, url: str) -> Any:  # noqa: F811
    assert url.startswith("http://127.0.0.1:")
    screen = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get("about:blank")
    browser.get_log("performance")
    browser.get(url)
    browser.implicitly_wait(30)
    yield browser
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    assert [one for one in requests if not one.startswith((url, "data:", "blob:"))] == []
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def answer(page: Any) -> str:
    """Wait for the most probable class, and return it."""
    return page.find_element("css selector", "[data-testid=label-output-value]").text


@pytest.mark.slow
@pytest.mark.parametrize(("row", "name"), [(0, "bar"), (2, "square")])
def test_a_picture_is_classified_and_shown_as_the_network_sees_it(
    page: Any, tmp_path: Path, row: int, name: str
) -> None:
    image = draw(3, seed=7)[row].reshape(28, 28)
    path = tmp_path / "photo.png"
    Image.fromarray(255 - image).resize((280, 280), 0).save(path)
    page.find_element("css selector", "input[type=file]").send_keys(str(path))
    assert answer(page) == name
    assert "negated" in page.find_element("tag name", "textarea").get_attribute("value")


@pytest.mark.slow
def test_a_drawing_is_classified(page: Any) -> None:
    from selenium.webdriver import ActionChains

    tabs = page.find_elements("css selector", "button[role=tab]")
    next(tab for tab in tabs if tab.text == "Drawing").click()
    page.find_element("css selector", "button[aria-label=Brush]").click()
    canvas = page.find_element("tag name", "canvas")
    strokes = ActionChains(page, duration=20)
    for x in range(-5, 6, 5):
        start = strokes.move_to_element_with_offset(canvas, x, -70)
        start.click_and_hold().move_by_offset(0, 70).move_by_offset(0, 70).release()
    strokes.perform()
    assert answer(page) == "bar"


@pytest.mark.slow
def test_what_is_no_picture_is_said_on_the_page(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "blank.png"
    Image.fromarray(np.full((50, 50), 255, np.uint8)).save(path)
    page.find_element("css selector", "input[type=file]").send_keys(str(path))
    text = page.find_element("tag name", "textarea")
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 30).until(lambda _: "blank.png: expected" in text.get_attribute("value"))
    assert "/" not in text.get_attribute("value")
