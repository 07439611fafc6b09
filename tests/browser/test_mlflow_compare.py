"""A published experiment in the interface of a real MLflow server: both arms side by side, without a click."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page

from abswitch.experiments import publish
from abswitch.experiments.report import write_report
from abswitch.store.tracking import TrackingLinks
from tests.experiments.scripted import ab_test

pytestmark = pytest.mark.browser


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", str(tmp_path / "a")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, *stores], env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
        )
        try:
            _wait_until_it_answers(address, process, tmp_path / "server.log")
            yield address
        finally:
            process.terminate()
            process.wait(20)


def _wait_until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert monotonic() < deadline_s, log.read_text()
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue


@pytest_asyncio.fixture
async def links(server: str, tmp_path: Path) -> AsyncIterator[TrackingLinks]:
    async with ab_test(mlflow=server) as (engine, result):
        publish(engine, result, report=write_report(engine, result, tmp_path / "report"))
        assert engine.tracking is not None
        assert await asyncio.to_thread(engine.tracking.flush, 120.0), engine.tracking.status()
        found = engine.tracking.links(result.operation_id)
        assert found is not None
        yield found


async def test_both_arms_are_side_by_side(browser: Browser, links: TrackingLinks) -> None:
    page = await browser.new_page(viewport={"width": 1360, "height": 900})
    await page.goto(links.compare)
    await page.get_by_text("Comparing 2 Runs").first.wait_for(timeout=60_000)
    await page.get_by_text("exact_match", exact=True).first.wait_for(timeout=60_000)
    text = await page.inner_text("body")
    for words in ("baseline", "candidate", "v1", "v2", "exact_match", "latency_s", "sampling.temperature"):
        assert words in text
    await _keep_picture(page, "compare")


async def test_the_experiment_opens_on_charts_that_overlay_the_arms(browser: Browser, links: TrackingLinks) -> None:
    page = await browser.new_page(viewport={"width": 1360, "height": 900})
    await page.goto(links.experiment)
    await page.get_by_text("window/exact_match").first.wait_for(timeout=60_000)
    text = await page.inner_text("body")
    assert "baseline (v1)" in text
    assert "candidate (v2)" in text
    await _keep_picture(page, "charts")


async def _keep_picture(page: Page, name: str) -> None:
    """For looking at, when somebody asks for it."""
    folder = os.environ.get("ABSWITCH_SCREENSHOTS")
    if folder:
        await page.wait_for_timeout(4000)  # charts are still being drawn
        await page.screenshot(path=str(Path(folder) / f"mlflow-{name}.png"))
