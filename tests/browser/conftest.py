"""A headless Chromium: the system's own where there is one, or else Playwright's."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.browser.chromium import launching


@pytest_asyncio.fixture
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(**launching(playwright.chromium.executable_path))
        yield launched
        await launched.close()
