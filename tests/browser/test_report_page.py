"""The report as people meet it: in a browser, on a telephone, on paper, in the dark, without a network."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from abswitch.experiments import switch_timing
from abswitch.experiments.overview import write_overview
from abswitch.experiments.report import write_report
from tests.browser.chromium import watch
from tests.experiments.scripted import ab_test

pytestmark = pytest.mark.browser
LONG = "a-metric-whose-name-somebody-made-much-longer-than-it-should-be"


@pytest_asyncio.fixture
async def report(tmp_path: Path) -> Path:
    async with ab_test() as (engine, result):
        await result.promote()
        await engine.generate("1+1=")
        await result.handle.done()
        timing = switch_timing(engine, result.operation_id)
        return write_report(engine, result, tmp_path / "sums" / "run", switch=timing, extra={LONG: LONG * 3})


@asynccontextmanager
async def opened(browser: Browser, report: Path, **options: Any) -> AsyncIterator[tuple[Page, list[str]]]:
    """The page, and what went wrong on it: errors, refused resources, requests to anywhere."""
    context = await browser.new_context(**options)
    page = await context.new_page()
    wrong = watch(page)
    await page.goto(report.as_uri())
    yield page, wrong
    await context.close()


@pytest.mark.parametrize("width", [390, 320, 768, 1280])
async def test_it_fits_every_width_and_asks_nobody(browser: Browser, report: Path, width: int) -> None:
    async with opened(browser, report, viewport={"width": width, "height": 844}) as (page, wrong):
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert await page.get_by_role("heading", level=1).inner_text() == "SHIP v2: it is better than v1."
        assert await page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert wrong == []


@pytest.mark.parametrize("width", [320, 1280])
async def test_the_page_over_all_runs(browser: Browser, report: Path, width: int) -> None:
    for number in range(3):
        shutil.copytree(report.parent, report.parents[1] / f"{LONG}-{number}")
    overview = write_overview(report.parents[2]).page
    async with opened(browser, overview, viewport={"width": width, "height": 844}) as (page, wrong):
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        assert await page.get_by_role("img").count() == 2
        worst = await page.evaluate(CONTRAST)
        assert worst["ratio"] >= 4.5, worst
        await page.locator("a[href$='run/index.html']").first.click()
        assert await page.get_by_role("heading", level=1).inner_text() == "SHIP v2: it is better than v1."
    assert wrong == []


async def test_the_verdict_is_seen_without_scrolling(browser: Browser, report: Path) -> None:
    async with opened(browser, report, viewport={"width": 390, "height": 700}) as (page, _):
        box = await page.locator(".decision").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 700


async def test_text_in_figures_stays_readable(browser: Browser, report: Path) -> None:
    for width in (320, 390, 1280):
        async with opened(browser, report, viewport={"width": width, "height": 800}) as (page, _):
            scales = await page.evaluate("[...document.images].map(i => i.clientWidth / i.naturalWidth)")
        assert len(scales) >= 3
        assert min(scales) >= 0.62, "9 points are 7 pixels then"


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_has_contrast(browser: Browser, report: Path, scheme: str) -> None:
    async with opened(browser, report, color_scheme=scheme) as (page, _):
        worst = await page.evaluate(CONTRAST)
    assert worst["ratio"] >= 4.5, worst


async def test_it_prints(browser: Browser, report: Path) -> None:
    async with opened(browser, report, color_scheme="dark") as (page, wrong):
        await page.emulate_media(media="print")
        assert await page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        paper = await page.pdf(format="A4")
    assert paper.startswith(b"%PDF")
    assert 2 <= paper.count(b"/Type /Page\n") <= 8
    assert wrong == []


CONTRAST = """() => {
  const light = rgb => { const [r, g, b] = rgb.match(/[\\d.]+/g).map(v => { v /= 255;
      return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
      if (c !== 'rgba(0, 0, 0, 0)') return c; } return 'rgb(255, 255, 255)'; };
  let worst = {ratio: 99};
  for (const e of document.querySelectorAll('main *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < worst.ratio) worst = {ratio, text: e.textContent.slice(0, 40), tag: e.tagName};
  }
  return worst;
}"""
