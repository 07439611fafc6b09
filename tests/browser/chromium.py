"""How tests start Chromium, and what a page does when it is opened."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

# As root Chromium refuses its sandbox; the rest keeps it from looking for its maker's servers.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome")


def launching(of_playwright: str) -> dict[str, Any]:
    """Arguments of `launch`; skips the test where there is no Chromium at all."""
    found = next(filter(None, map(shutil.which, NAMES)), None) or of_playwright
    if not Path(found).exists():
        pytest.skip("no Chromium: neither chromium nor google-chrome is installed, nor Playwright's own")
    return {"executable_path": found, "args": list(ARGUMENTS)}


def watch(page: Any) -> list[str]:
    """What goes wrong on a page from now on: messages, errors, refused resources, requests to anywhere."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url[:80]))
    page.on("request", lambda r: None if r.url.startswith(("data:", "file:")) else wrong.append(r.url))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    return wrong


def look_at(path: Path) -> tuple[str, list[str]]:
    """Opens a file; its first heading, and what went wrong."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(**launching(playwright.chromium.executable_path))
        page = launched.new_page()
        wrong = watch(page)
        page.goto(path.as_uri())
        heading = page.get_by_role("heading", level=1).inner_text()
        launched.close()
    return heading, wrong
