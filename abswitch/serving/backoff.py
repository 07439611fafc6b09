"""When a crashed version may be started again. Pure: the caller says what time it is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from abswitch import checks


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Limits of restarting.

    Args:
        initial_s: pause before the second restart; the first comes at once, each further pause is twice as long.
        max_s: the longest pause.
        max_restarts: within `window_s`, more than this and the version counts as broken.
        window_s: how long a restart is remembered.
    """

    initial_s: float = 1.0
    max_s: float = 60.0
    max_restarts: int = 5
    window_s: float = 600.0

    def __post_init__(self) -> None:
        checks.number("restart_initial_s", self.initial_s, low=0.0, above=True)
        checks.number("restart_max_s", self.max_s, low=self.initial_s)
        checks.integer("max_restarts", self.max_restarts, low=0)
        checks.number("restart_window_s", self.window_s, low=0.0, above=True)


@dataclass(slots=True)
class BackOff:
    """The restarts of one version."""

    policy: RestartPolicy
    _at_s: deque[float] = field(default_factory=deque)

    def next_delay_s(self, now_s: float) -> float | None:
        """Note a restart, and say how long to wait before it; None when the version has been restarted too often."""
        while self._at_s and self._at_s[0] <= now_s - self.policy.window_s:
            self._at_s.popleft()
        tried = len(self._at_s)
        if tried >= self.policy.max_restarts:
            return None
        delay_s = 0.0 if not tried else min(self.policy.max_s, self.policy.initial_s * 2.0 ** (tried - 1))
        self._at_s.append(now_s + delay_s)
        return delay_s

    def in_vain(self, lasted_s: float) -> None:
        """An attempt failed after so long. The version did not run meanwhile, so the earlier restarts are no older:
        else attempts that each take minutes to fail would be forgotten before there are too many of them."""
        self._at_s = deque(at_s + lasted_s for at_s in self._at_s)
