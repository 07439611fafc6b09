"""A published experiment in the interface of a real MLflow server: both arms side by side, without a click."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, ViewportSize

from abswitch.experiments import publish, run_ab_test
from abswitch.experiments.report import write_report
from abswitch.store.tracking import TrackingLinks
from tests.experiments.scripted import METRICS, engine_for, problems
from tests.store.live_mlflow import Server

pytestmark = pytest.mark.browser
NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
SIZE = ViewportSize(width=1600, height=1700)  # what is below the fold is not drawn
ANSWERED_MS = 90_000


@dataclass(frozen=True, slots=True)
class Published:
    """One experiment on a server that all tests here look at."""

    server: Server
    links: TrackingLinks


@pytest.fixture(scope="module")
def published(fresh_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(Path(shutil.copy(fresh_database, folder / "mlflow.db")))
    try:
        server.start()
        yield Published(server, asyncio.run(_publish(server.url, folder)))
    finally:
        server.kill()


async def _publish(address: str, folder: Path) -> TrackingLinks:
    """A test that looks often before it is decided, as the two versions are not far apart."""
    versions = {"v1": 0.58, "v2": 0.74}
    async with engine_for(versions, store=folder / "s.duckdb", mlflow=address) as engine:
        await engine.deploy("v1")
        prompts = problems(900)
        result = await run_ab_test(engine, "v2", prompts, metrics=METRICS, experiment="sums", look_every=60)
        page = await asyncio.to_thread(write_report, engine, result, folder / "report")
        publish(engine, result, report=page)
        assert engine.tracking is not None
        assert await asyncio.to_thread(engine.tracking.flush, 120.0), engine.tracking.status()
        found = engine.tracking.links(result.operation_id)
        assert found is not None
        return found


async def test_both_arms_are_side_by_side(browser: Browser, published: Published) -> None:
    page = await _new_page(browser)
    await page.goto(published.links.compare)
    await page.get_by_text("Comparing 2 Runs").first.wait_for(timeout=ANSWERED_MS)
    await page.get_by_text("exact_match", exact=True).first.wait_for(timeout=ANSWERED_MS)
    text = await page.inner_text("body")
    for words in ("baseline", "candidate", "v1", "v2", "exact_match", "latency_s", "sampling.temperature"):
        assert words in text
    await _keep_picture(page, "compare")


async def test_the_experiment_opens_on_the_charts_that_were_chosen(browser: Browser, published: Published) -> None:
    page = await _new_page(browser)
    await page.goto(published.links.experiment)
    await page.get_by_text("By window of time").first.wait_for(timeout=ANSWERED_MS)
    await page.get_by_text("look/exact_match/difference").first.wait_for(timeout=ANSWERED_MS)
    text = await page.inner_text("body")
    assert "baseline (v1)" in text and "candidate (v2)" in text
    sections = ("Totals", METRICS[0].name, METRICS[1].name, "What each look at the evidence found", "By window of time")
    places = [text.index(words) for words in sections]
    assert places == sorted(places), "the plan's metrics come first, in its order"
    await _keep_picture(page, "charts")


async def test_a_run_leads_to_its_report_and_to_its_requests(browser: Browser, published: Published) -> None:
    page = await _new_page(browser)
    await page.goto(f"{published.links.run_urls['candidate']}/artifacts")
    for name in ("report", "index.html", "summary.json"):
        await page.get_by_text(name).first.wait_for(timeout=ANSWERED_MS)
        if name == "report":
            await page.get_by_text(name, exact=True).first.click()
    await page.goto(f"{published.links.run_urls['candidate']}/traces")
    await page.get_by_text("tr-").first.wait_for(timeout=ANSWERED_MS)
    await _keep_picture(page, "traces")


async def _new_page(browser: Browser) -> Page:
    page = await browser.new_page(viewport=SIZE)
    await page.add_init_script(NO_ASSISTANT)
    return page


async def _keep_picture(page: Page, name: str) -> None:
    """For looking at, when somebody asks for it."""
    folder = os.environ.get("ABSWITCH_SCREENSHOTS")
    if folder:
        await page.wait_for_timeout(4000)  # charts are still being drawn
        await page.screenshot(path=str(Path(folder) / f"mlflow-{name}.png"))
