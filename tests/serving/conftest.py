from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.serving.harness import Shell


@pytest_asyncio.fixture
async def shell() -> AsyncIterator[Shell]:
    made = Shell()
    yield made
    await made.close()
