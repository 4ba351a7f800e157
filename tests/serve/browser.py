"""Chromium by Playwright, and axe-core in its pages."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import axe_core_python
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
SERIOUS, TOLD = {"serious", "critical"}, {"error", "warning"}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's browser, without a window."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield found
        finally:
            found.close()


@contextmanager
def window(browser: Browser, address: str, **options: Any) -> Iterator[Page]:
    """A page of a fresh profile; what its console or its policy complains of fails the test."""
    context = browser.new_context(base_url=address, **options)
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type in TOLD else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.set_default_timeout(20_000)
    try:
        yield page
    finally:
        context.close()
    # A page with a status of 4xx is told of there too, and asserted on by itself.
    assert not [text for text in complaints if "responded with a status of 4" not in text]


@cache
def _axe() -> str:
    return (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()


def findings(page: Page, only: str = "") -> list[tuple[str, list[str]]]:
    """Serious and critical findings of axe-core on a page as it stands: the rule, and the elements that break it."""
    page.evaluate(f"if (!window.axe) {{ {_axe()} }}")
    found = page.evaluate("only => axe.run(only ? {runOnly: [only]} : {})", only)
    assert found["passes"]
    return [
        (item["id"], [node["html"] for node in item["nodes"]])
        for item in found["violations"]
        if item["impact"] in SERIOUS
    ]
