"""`ModelInstance`: a version that runs. One protocol, three kinds: vLLM, any OpenAI-compatible server, scripted."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Hashable, Mapping
from typing import Protocol

from abswitch import checks
from abswitch.domain import GenerationRequest, HealthFacts, LoadFacts, ModelVersion, TokenChunk
from abswitch.errors import InvalidInput
from abswitch.serving.policy import Footprint


class ModelInstance(Protocol):
    """A version that runs, or can. All methods are called on one event loop, the engine's.

    Life: `start` → (`generate` | `health` | `sleep` → `wake`)* → `stop`. `stop` and `kill` are idempotent and
    allowed at any time.
    """

    @property
    def version(self) -> ModelVersion:
        """The version this instance serves, whole life long."""

    @property
    def can_sleep(self) -> bool:
        """Whether `sleep` and `wake` are available on this platform."""

    @property
    def engine_key(self) -> Hashable:
        """Equal for instances that run on one engine, whose memory is counted once."""

    async def needs(self) -> Footprint:
        """Memory that `start` will take beyond what runs already; before `start`, and an estimate."""

    async def engine_to_join(self) -> Hashable | None:
        """The `engine_key` of a running engine that `start` would join; None where it would start one of its own."""

    async def memory(self) -> Footprint:
        """Memory its whole engine takes now; nothing when it is not started or runs elsewhere."""

    @property
    def last_token_s(self) -> float | None:
        """When anything that runs on the same engine last gave a token, on the monotonic clock; None before that."""

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

    async def why_not_in_place(self, version: ModelVersion) -> str | None:
        """Why the weights of `version` cannot take the place of this one's; None when they can."""

    async def become(self, version: ModelVersion) -> ModelInstance:
        """Load another version's weights into this engine, in place of its own; returns the instance of that version.

        This instance is stopped by it. The caller has drained it, and compares the answers afterwards.

        Raises:
            InstanceError: not possible here (see `why_not_in_place`), or requests are in flight; nothing changed.
            LoadFailed: the engine refused the weights; what it holds now is unknown, so this instance was stopped.
        """

    async def stop(self) -> None:
        """Give everything back; leaves no process behind. Idempotent."""

    async def kill(self, reason: str) -> None:
        """`stop` without the help of what runs, which hangs or is gone.

        Open generations end at once, with `InstanceDied` and the reason.
        """


InstanceFactory = Callable[[ModelVersion], ModelInstance]
"""Makes the (not yet started) instance of a version; one per backend name."""


def factories_of(value: Mapping[str, InstanceFactory] | None) -> dict[str, InstanceFactory]:
    """Accept instance factories by backend name; None for no further ones.

    Raises:
        InvalidInput: no dictionary, a name that is no text, or a factory that cannot be called.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput("backends", value, "a dictionary: backend name → instance factory")
    for name, factory in value.items():
        checks.name("backends (a name)", name)
        if not callable(factory):
            raise InvalidInput(f"backends.{name}", factory, "an instance factory, called with a ModelVersion")
    return dict(value)
