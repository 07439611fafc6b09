"""`ModelSwitchingConfig`: how the engine behaves where nothing else was said."""

from __future__ import annotations

from dataclasses import dataclass

from abswitch import checks
from abswitch.domain import SwitchingStrategyType


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSwitchingConfig:
    """Settings of one `SwitchingEngine`.

    Args:
        max_cached_models: loaded versions to keep at most, least recently used first out; versions in use are kept
            beyond it.
        default_switch_strategy: used by `start_switch` when no strategy is named.
        max_transition_time_seconds: how long a switch waits for requests on the version that leaves; they are left to
            finish in any case.

    Raises:
        InvalidInput: a field is outside its range.
    """

    max_cached_models: int = 5
    default_switch_strategy: str = SwitchingStrategyType.IMMEDIATE
    max_transition_time_seconds: float = 300.0
    max_concurrent_switches: int = 3
    switch_timeout_seconds: float = 300.0
    enable_automatic_rollback: bool = True
    max_queue_wait_seconds: float = 60.0
    max_queued_requests: int = 1000
    golden_prompt_check: bool = True
    device_memory_limit_gb: float | None = None
    host_memory_limit_gb: float | None = None
    restart_initial_seconds: float = 1.0
    restart_max_seconds: float = 60.0
    max_restarts: int = 5
    restart_window_seconds: float = 600.0

    @property
    def device_memory_budget_bytes(self) -> int | None:
        """`device_memory_limit_gb` (GiB) in bytes."""
        return None if self.device_memory_limit_gb is None else int(self.device_memory_limit_gb * 2**30)

    @property
    def host_memory_budget_bytes(self) -> int | None:
        """`host_memory_limit_gb` (GiB) in bytes."""
        return None if self.host_memory_limit_gb is None else int(self.host_memory_limit_gb * 2**30)

    def __post_init__(self) -> None:
        checks.integer("max_cached_models", self.max_cached_models, low=1)
        checks.one_of("default_switch_strategy", self.default_switch_strategy, (t.value for t in SwitchingStrategyType))
        checks.number("max_transition_time_seconds", self.max_transition_time_seconds, low=0.0, above=True)
