"""A real browser for tests of pages: offline, and with an ear for complaints."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

_CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if _CHROMIUM is None:
        pytest.skip("there is no chromium on the path")
    with api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=_CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser):
    """Opens a file without a network; fails the test at its end if the page complained."""
    complaints, contexts = [], []

    def go(file: Path, **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append("dialog"))
        tab.on(
            "request",
            lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url),
        )
        tab.goto(file.as_uri())
        tab.wait_for_function(
            "document.querySelectorAll('.chart svg').length"
            " === document.querySelectorAll('.chart').length"
        )
        return tab

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2 of two colours `rgb(r, g, b)`."""

    def luminance(colour: str) -> float:
        parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
