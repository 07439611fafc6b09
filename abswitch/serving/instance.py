"""`ModelInstance`: a version that runs. One protocol, three kinds: vLLM, any OpenAI-compatible server, scripted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from abswitch.domain import GenerationRequest, HealthFacts, LoadFacts, ModelVersion, TokenChunk


class ModelInstance(Protocol):
    """A version that runs, or can. All methods are called on one event loop, the engine's.

    Life: `start` → (`generate` | `health` | `sleep` → `wake`)* → `stop`. `stop` is idempotent and allowed at any time.
    """

    @property
    def version(self) -> ModelVersion:
        """The version this instance serves, whole life long."""

    @property
    def can_sleep(self) -> bool:
        """Whether `sleep` and `wake` are available on this platform."""

    async def start(self) -> LoadFacts:
        """Become able to serve.

        Raises:
            LoadFailed: with the reason; nothing is left running, and `start` may be tried again.
        """

    def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenChunk, None]:
        """Generate an answer as chunks with `index` 0, 1, 2, …, the last one carrying `finish_reason`.

        Closing the iterator (or cancelling its task) ends the generation and frees what it held.

        Raises:
            InstanceNotRunning: before `start`, after `stop`, or asleep.
            PromptTooLong: the prompt does not fit the context length.
            InstanceDied: the process or server went away; some chunks may have been delivered.
        """

    async def health(self) -> HealthFacts:
        """Facts about this instance; never raises for a dead process, but says so."""

    async def sleep(self, level: int = 1) -> None:
        """Free device memory, keeping the weights in host memory (level 1) or not at all (level 2).

        Raises:
            InstanceError: not available on this platform, or requests are in flight.
        """

    async def wake(self) -> None:
        """Undo `sleep`; returns when able to serve again."""

    async def stop(self) -> None:
        """Give everything back; leaves no process behind. Idempotent."""


InstanceFactory = Callable[[ModelVersion], ModelInstance]
"""Makes the (not yet started) instance of a version; one per backend name."""
