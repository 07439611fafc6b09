"""A headless Chromium: the system's own where there is one, or else Playwright's."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

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


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), None) or playwright.chromium.executable_path
        if not Path(found).exists():  # noqa: ASYNC240  # one look at a local file
            pytest.skip("no Chromium: neither chromium nor google-chrome is installed, nor Playwright's own")
        launched = await playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield launched
        await launched.close()
