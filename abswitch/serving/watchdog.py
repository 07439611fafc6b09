"""`Watchdog`: is an instance still generating? Asked of tokens, never of a process or a port.

A hung engine keeps its process and answers `/health`. So whoever gave no token for a while is asked for one, by a
request of one token that leaves no trace in the evidence. An instance hangs when it neither answers that nor gives any
other token in the time allowed: a long queue, a long prompt or a reader who does not read is no hang.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count

from abswitch.clock import Clock
from abswitch.domain import GenerationRequest, VersionKey
from abswitch.errors import InstanceDied
from abswitch.serving.instance import ModelInstance
from abswitch.serving.readiness import WARM_PROMPT

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Watch:
    """What is known about one instance.

    Attributes:
        token_s: `last_token_s` of the instance, as seen last.
        moved_s: when that was seen to change.
        asked_s: since when a probe is out; None when none is.
        shown: it gave a token since it is watched.
    """

    instance: ModelInstance
    token_s: float | None
    moved_s: float
    asked_s: float | None = None
    probe: asyncio.Task[None] | None = None
    shown: bool = False

    def forget_probe(self) -> None:
        """Nobody waits for the probe any more."""
        self.asked_s = None
        if self.probe is not None:
            self.probe.cancel()
            self.probe = None


class Watchdog:
    """Watches instances. Lives on the engine's loop; `look` is to be called often.

    Args:
        probe_after_s: silence after which an instance is asked.
        hang_after_s: how long it may leave that unanswered.
        may_probe_idle: whether an instance without requests may be asked; a server that bills by the token may not.
        on_hung, on_dead: told of (key, instance, reason), once per instance.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        probe_after_s: float,
        hang_after_s: float,
        may_probe_idle: Callable[[ModelInstance], bool],
        on_hung: Callable[[VersionKey, ModelInstance, str], None],
        on_dead: Callable[[VersionKey, ModelInstance, str], None],
    ) -> None:
        self._clock = clock
        self._probe_after_s = probe_after_s
        self._hang_after_s = hang_after_s
        self._may_probe_idle = may_probe_idle
        self._on_hung = on_hung
        self._on_dead = on_dead
        self._watches: dict[VersionKey, Watch] = {}
        self._numbers = count()

    def watch(self, key: VersionKey) -> Watch | None:
        """What is known about a version's instance."""
        return self._watches.get(key)

    def look(self, key: VersionKey, instance: ModelInstance, in_flight: int) -> None:
        """See how the version's instance is doing; `in_flight` requests are under way on it."""
        now_s = self._clock.monotonic_s()
        watch = self._watches.get(key)
        if watch is None or watch.instance is not instance:
            self.leave(key)
            self._watches[key] = Watch(instance, instance.last_token_s, now_s)
            return
        if instance.last_token_s != watch.token_s:
            watch.token_s, watch.moved_s, watch.shown = instance.last_token_s, now_s, True
            watch.forget_probe()
        elif watch.asked_s is not None:
            if now_s - watch.asked_s >= self._hang_after_s:
                self._hangs(key, watch, in_flight, now_s)
        elif now_s - watch.moved_s >= self._probe_after_s and (in_flight or self._may_probe_idle(instance)):
            watch.asked_s = now_s
            watch.probe = asyncio.get_running_loop().create_task(self._probe(key, watch), name=f"probe {key}")

    def leave(self, key: VersionKey) -> None:
        """Watch the version no longer."""
        watch = self._watches.pop(key, None)
        if watch is not None:
            watch.forget_probe()

    def excuse(self, seconds: float) -> None:
        """Nobody could answer for so long, because this process itself stood still."""
        for watch in self._watches.values():
            watch.moved_s += seconds
            if watch.asked_s is not None:
                watch.asked_s += seconds

    def silence_s(self, key: VersionKey) -> float | None:
        """How long the version gave no token; None when it is not watched."""
        watch = self._watches.get(key)
        return None if watch is None else self._clock.monotonic_s() - watch.moved_s

    def close(self) -> None:
        """End the probes."""
        for key in tuple(self._watches):
            self.leave(key)

    def _hangs(self, key: VersionKey, watch: Watch, in_flight: int, now_s: float) -> None:
        silent_s = now_s - watch.moved_s
        self.leave(key)
        under_way = f", {in_flight} request(s) under way" if in_flight else ""
        reason = f"it hangs: no token for {silent_s:.1f} s{under_way}, and no answer when asked for one"
        self._on_hung(key, watch.instance, reason)

    async def _probe(self, key: VersionKey, watch: Watch) -> None:
        version = watch.instance.version
        request = GenerationRequest(
            request_id=f"probe-{version.version}-{next(self._numbers)}",
            prompt=WARM_PROMPT,
            sampling=version.config.sampling.merged({"max_tokens": 1, "ignore_eos": True, "stop": ()}),
        )
        try:
            async with aclosing(watch.instance.generate(request)) as chunks:
                async for _ in chunks:
                    pass
        except InstanceDied as death:
            if self._watches.get(key) is watch:
                del self._watches[key]
                self._on_dead(key, watch.instance, str(death))
            return
        except Exception as error:  # it refused, or is asleep: an answer, too
            log.debug("probe of %s: %s", version, error)
        # In place of a look: what answered in time must not be found silent because its token was seen late.
        watch.moved_s, watch.asked_s, watch.probe, watch.shown = self._clock.monotonic_s(), None, None, True
        watch.token_s = watch.instance.last_token_s
