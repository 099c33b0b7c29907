"""The page of `ngd inspect` in a real browser, at the widths of a desk and of a phone, by day and
by night: `make browser`, which needs Chromium.

With $NGD_PICTURES a folder, pictures of the page go there, to be looked at.
"""

import os
from pathlib import Path

import numpy as np
import pytest
from browser.chromium import Browser, found

from ngd_core.lab.cli import main

DESK, PHONE = 1280, 390
MODELS = ("cnn", "transformer")

WIDER = """
[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') &&
  e.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5
).map(e => e.outerHTML.slice(0, 80))
"""
SMALL = """
[...document.querySelectorAll('svg text')].map(e => parseFloat(getComputedStyle(e).fontSize)
  * e.getScreenCTM().a).reduce((a, b) => Math.min(a, b))
"""
OVERLAPS = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const words = [...svg.querySelectorAll('text')]
  const boxes = words.map(e => [e.textContent, e.getBoundingClientRect()])
  return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
    Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 &&
    Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4
  ).map(([b, q]) => a + ' / ' + b))
})
"""
OUTSIDE = """
[...document.querySelectorAll('svg')].flatMap(svg => {
  const own = svg.getBoundingClientRect()
  return [...svg.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()])
    .filter(([a, p]) => p.left < own.left - 1 || p.right > own.right + 1).map(([a]) => a)
})
"""
SHADES = """
(() => {
  const read = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number)
  const paper = read(getComputedStyle(document.body).backgroundColor)
  const kinds = 'h1, h2, h3, p, dt, dd, a, td, th, figcaption, summary'
  return [paper, ...[...document.querySelectorAll(kinds)].map(e => read(getComputedStyle(e).color)),
    ...[...document.querySelectorAll('svg text')].map(e => read(getComputedStyle(e).fill))]
})()
"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of a small network and of one with many layers and long names."""
    home = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    images, labels = rng.random((12, 8, 8)), np.arange(12) % 10
    source = home / "set.npz"
    np.savez(source, x_train=images, y_train=labels, x_test=images, y_test=labels)
    for model in MODELS:
        words = ["inspect", "--model", model, "--backend", "torch", "--data", str(source)]
        assert main([*words, "--examples", "12", "--out", str(home / model)]) == 0
    return {model: home / model / "index.html" for model in MODELS}


VIEWS = [(m, w, s) for m in MODELS for w in (DESK, PHONE) for s in ("light", "dark")]


@pytest.fixture(scope="module", params=VIEWS, ids=["-".join(map(str, view)) for view in VIEWS])
def view(browser, pages, request):
    model, width, scheme = request.param
    browser.open(pages[model], width, 844, scheme)
    folder = os.environ.get("NGD_PICTURES")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.picture(Path(folder) / f"{model}-{width}-{scheme}.png")
    return browser


def test_nothing_makes_the_page_wider_than_the_window(view):
    assert view.value("document.documentElement.scrollWidth - innerWidth") <= 0
    assert view.value(WIDER) == []


def test_wide_tables_scroll_in_their_frames(view):
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    if view.value("innerWidth") == PHONE:
        assert view.value(f"{wide}.length") > 0
    moved = f"{wide}.every(e => (e.scrollLeft = 9, e.scrollLeft > 0))"
    assert view.value(moved)


def test_words_of_pictures_are_large_enough_and_apart(view):
    assert view.value(SMALL) >= 10
    assert view.value(OVERLAPS) == []
    assert view.value(OUTSIDE) == []


def contrast(one, two):
    def luminance(colour):
        parts = np.asarray(colour) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


def test_words_stand_out_from_the_paper_of_the_scheme(view):
    paper, *words = view.value(SHADES)
    dark = view.value("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (sum(paper) < 3 * 64) == dark
    assert len(words) > 50
    assert min(contrast(colour, paper) for colour in words) >= 4.5


def test_pictures_have_names_for_those_who_do_not_see_them(view):
    """As the browser computes them for a screen reader."""
    nodes = view.ask("Accessibility.getFullAXTree")["nodes"]
    pictures = [n for n in nodes if n.get("role", {}).get("value") in ("image", "img")]
    assert len(pictures) == view.value("document.querySelectorAll('svg').length") > 8
    for node in pictures:
        assert any(c.isdigit() for c in node["name"]["value"])
        assert len(node["name"]["value"]) > 30


def test_the_page_asks_for_nothing_and_complains_of_nothing(view):
    asked = [e["request"]["url"] for e in view.told("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert sum(url.startswith("file:") for url in asked) == 1
    assert view.told("Log.entryAdded") == []
    assert view.told("Runtime.exceptionThrown") == []


def test_every_unit_opens_on_a_click(view):
    view.value("document.querySelector('summary').click()")
    shown = "document.querySelector('details .scroll').getBoundingClientRect().height"
    assert 40 < view.value(shown) <= 400
    assert view.value("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_missing_browser_is_named(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(FileNotFoundError, match="apt-get install chromium"):
        found()
