"""`ModelSwitchingConfig`: how the engine behaves where nothing else was said."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from abswitch import checks
from abswitch.domain import SwitchingStrategyType
from abswitch.errors import InvalidInput
from abswitch.rollout.limits import LEVELS, METRICS, AlertThresholds, completed, levels_of
from abswitch.settings import fields as kinds
from abswitch.settings.fields import MIB_PER_GIB, UNSET, Setting, setting, setting_of
from abswitch.settings.sources import FILE_VARIABLE, THRESHOLDS, Findings, Found, from_environment, from_file

_GIB = 1 << 30
_CODE = "code"
_DEFAULT = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSwitchingConfig:
    """Settings of one `SwitchingEngine`; docs/settings.md has them all in a table.

    A field given here counts; one that is not comes from its environment variable `VLLM_MODEL_SWITCHING_…`, else from
    the file that `VLLM_MODEL_SWITCHING_CONFIG` names (or `load` is given), else it has its default.

    Raises:
        InvalidInput: a value outside its range, naming the variable or the file's key it came from; a variable with
            that prefix, or a key, that does not exist; a file that cannot be read.
    """

    enabled: bool = setting(
        True, kinds.flag(), "Whether `start_switch` may replace an active version; the first deployment always may."
    )
    max_cached_models: int = setting(
        5, kinds.whole(1), "Loaded versions kept at most, least recently used first out; those in use stay beyond it."
    )
    cache_memory_limit_gb: float | None = setting(
        None,
        kinds.optional(kinds.number(), "no limit in bytes"),
        "Host memory that loaded versions may take together, in GiB.",
        "CACHE_MEMORY_GB",
        CACHE_SIZE=1 / MIB_PER_GIB,
    )
    device_cache_memory_limit_gb: float | None = setting(
        None,
        kinds.optional(kinds.number(), "no limit in bytes"),
        "Accelerator memory that loaded versions may take together, in GiB.",
        "DEVICE_CACHE_MEMORY_GB",
        DEVICE_CACHE_SIZE=1 / MIB_PER_GIB,
    )
    cpu_core_groups: int = setting(
        2,
        kinds.whole(1),
        "On a CPU, into how many equal groups its cores are divided; engines that work at the same time run on "
        "different ones, so that versions do not slow each other down. With 1 each has all cores.",
    )
    default_switch_strategy: str = setting(
        SwitchingStrategyType.IMMEDIATE.value,
        kinds.choice(*(one.value for one in SwitchingStrategyType)),
        "Used by `start_switch` when no strategy is named.",
        "DEFAULT_STRATEGY",
    )
    max_concurrent_switches: int = setting(
        3, kinds.whole(1), "Switches of different models under way at most.", "MAX_CONCURRENT"
    )
    max_version_history: int = setting(
        50,
        kinds.whole(2),
        "Registered versions of a model kept at most; the one that was active longest ago goes first, and none that is "
        "active, was active before that, is a candidate, has an alias, or is in use.",
    )
    switch_timeout_seconds: float = setting(
        300.0, kinds.number(), "How long a candidate may take to load and to give its first token.", "TIMEOUT"
    )
    max_transition_time_seconds: float = setting(
        300.0,
        kinds.number(),
        "How long a switch waits for requests on the version that leaves; they are left to finish in any case.",
    )
    enable_automatic_rollback: bool = setting(
        True,
        kinds.flag(),
        "Whether a critical breach rolls an operation back, or returns an active version to the last good one.",
    )
    golden_prompt_check: bool = setting(
        True, kinds.flag(), "Compare a version that comes back with the answers it gave at first."
    )
    max_queue_wait_seconds: float = setting(
        60.0, kinds.number(), "How long a request waits while nothing can serve it."
    )
    max_queued_requests: int = setting(1000, kinds.whole(1), "How many requests of one model wait at most.")
    restart_initial_seconds: float = setting(
        1.0, kinds.number(), "Pause before the second restart of a version that was lost; the first comes at once."
    )
    restart_max_seconds: float = setting(60.0, kinds.number(), "The longest pause; each is twice the one before.")
    max_restarts: int = setting(
        5, kinds.whole(0), "Restarts within the window below, after which a version counts as broken."
    )
    restart_window_seconds: float = setting(600.0, kinds.number(), "How long a restart is remembered.")
    enable_health_checks: bool = setting(True, kinds.flag(), "Whether versions are watched at all.")
    monitoring_interval_seconds: float = setting(1.0, kinds.number(), "How often the health of versions is looked at.")
    health_probe_interval_seconds: float = setting(
        2.0, kinds.number(), "A version that gave no token for this long is asked for one."
    )
    health_check_timeout_seconds: float = setting(
        6.0, kinds.number(), "A version that gives no token for this long after it was asked hangs, and is replaced."
    )
    metrics_window_seconds: float = setting(
        60.0, kinds.number(), "What rates and quantiles of a version's health look back on."
    )
    alert_min_requests: int = setting(20, kinds.whole(1), "With fewer requests in the window, a metric is unknown.")
    alert_cooldown_seconds: float = setting(
        300.0,
        kinds.number(0.0, above=False),
        "An alert that fires again this soon after it was resolved is the same one, and sinks are not told again; "
        "nor does an active version go back twice in that time.",
    )
    alert_history_size: int = setting(1000, kinds.whole(1), "Alerts kept in memory, oldest first out.")
    alert_webhook_url: str | None = setting(
        None, kinds.optional(kinds.address(), "no webhook"), "Where alerts are sent, in Alertmanager's form."
    )
    alert_webhook_secret: str | None = setting(
        None,
        kinds.optional(kinds.secret(), "requests are not signed"),
        "Key that webhook requests are signed with (HMAC-SHA256).",
        secret=True,
    )
    alert_thresholds: AlertThresholds | Mapping[str, Any] = setting(  # noqa: RUF009 (it returns a dataclass field)
        None, kinds.text(), "Limits of the metrics; see the table below. The attribute is always an `AlertThresholds`."
    )
    origins: Mapping[str, str] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        names = tuple(SETTINGS)
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not UNSET}
        layers = [_in_code(given)]
        if not _says_all(given):
            layers += _outside(os.environ, None)
        self._settle(layers)

    @classmethod
    def of(cls, value: ModelSwitchingConfig | Mapping[str, Any]) -> ModelSwitchingConfig:
        """Accept settings, or a dictionary of some of them; the others come from where they always come from.

        Raises:
            InvalidInput: it is neither; and as the class does.
        """
        if isinstance(value, ModelSwitchingConfig):
            return value
        if not isinstance(value, Mapping):
            allowed = "a ModelSwitchingConfig, or a dictionary of settings; a file is read by ModelSwitchingConfig.load"
            raise InvalidInput("config", value, allowed)
        checks.known_fields("config", value, SETTINGS)
        return cls(**value)

    @classmethod
    def load(cls, path: Path | str | None = None, *, environ: Mapping[str, str] | None = None, **settings: Any) -> Self:
        """The settings of a file, below the environment and below what is given here.

        Args:
            path: TOML or YAML; by default the file that `VLLM_MODEL_SWITCHING_CONFIG` names, if it does.
            environ: the environment; the process's own by default.
            settings: fields by name; they count before everything else.

        Raises:
            InvalidInput: as the class does.
        """
        checks.known_fields("settings", settings, SETTINGS)
        made = cls.__new__(cls)
        made._settle([_in_code(settings), *_outside(os.environ if environ is None else environ, path)])
        return made

    def _settle(self, layers: list[Findings]) -> None:
        found: Findings = {}
        for layer in reversed(layers):
            found |= layer
        origins: dict[str, str] = {}
        for name, described in SETTINGS.items():
            at = found.get(name, Found(described.default, _DEFAULT))
            value = _thresholds(found, at) if name == THRESHOLDS else at.value
            origins[name] = at.where
            if name == THRESHOLDS:
                origins |= _levels_origins(found, at)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "origins", origins)
        self._check_pauses()

    def _check_pauses(self) -> None:
        if self.restart_max_seconds >= self.restart_initial_seconds:
            return
        refused, other, bound = "restart_max_seconds", "restart_initial_seconds", "least"
        if self.origins[refused] == _DEFAULT:  # the one that was given is the one to be named
            refused, other, bound = other, refused, "most"
        allowed = f"at {bound} {other}, {getattr(self, other):g} ({self.origins[other]})"
        raise InvalidInput(_named(refused, self.origins), getattr(self, refused), allowed)

    @property
    def limits(self) -> AlertThresholds:
        """`alert_thresholds`, typed."""
        return AlertThresholds.of(self.alert_thresholds)

    @property
    def host_memory_budget_bytes(self) -> int | None:
        """Budget of loaded versions in host memory; None: none by bytes."""
        return None if self.cache_memory_limit_gb is None else int(self.cache_memory_limit_gb * _GIB)

    @property
    def device_memory_budget_bytes(self) -> int | None:
        """Budget of loaded versions in accelerator memory; None: none by bytes."""
        return None if self.device_cache_memory_limit_gb is None else int(self.device_cache_memory_limit_gb * _GIB)

    def place_of(self, name: str) -> str:
        """Where a setting's value was given, to end a sentence with."""
        where = self.origins[name]
        return {_CODE: "in code", _DEFAULT: "by default"}.get(where, f"by {where}")

    def shown(self) -> Iterator[tuple[str, str, str]]:
        """(name, value, where it came from) of every setting; secrets are hidden."""
        for name, described in SETTINGS.items():
            value = getattr(self, name)
            if name == THRESHOLDS:
                for metric, limit in self.limits.items():
                    of_metric = f"{name}.{metric}"
                    yield of_metric, f"{limit.warning} / {limit.critical}", self.origins[of_metric]
            else:
                yield name, "(hidden)" if described.secret and value else str(value), self.origins[name]


def _settings() -> dict[str, Setting]:
    pairs = ((one.name, setting_of(one.metadata)) for one in fields(ModelSwitchingConfig))
    return {name: described for name, described in pairs if described is not None}


SETTINGS: Mapping[str, Setting] = MappingProxyType(_settings())
"""Every setting by name, in the order of the documentation."""


def _in_code(given: Mapping[str, Any]) -> Findings:
    found: Findings = {}
    for name, value in given.items():
        if name != THRESHOLDS:
            found[name] = Found(SETTINGS[name].kind.check(name, value), _CODE)
        elif isinstance(value, AlertThresholds):
            found[name] = Found(value, _CODE)
        else:
            for metric, levels in levels_of(name, value).items():
                found |= {(metric, level): Found(at, _CODE) for level, at in levels.items()}
    return found


def _says_all(given: Mapping[str, Any]) -> bool:
    """Whether nothing is left for the environment to say, as in `dataclasses.replace`."""
    return len(given) == len(SETTINGS) and isinstance(given[THRESHOLDS], AlertThresholds)


def _outside(environ: Mapping[str, str], path: Path | str | None) -> list[Findings]:
    layers = [from_environment(environ, SETTINGS)]
    if path is not None:
        layers.append(from_file(path, SETTINGS))
    elif FILE_VARIABLE in environ:
        layers.append(from_file(environ[FILE_VARIABLE], SETTINGS, named_by=FILE_VARIABLE))
    return layers


def _thresholds(found: Findings, whole: Found) -> AlertThresholds:
    if whole.value is not None:
        return AlertThresholds.of(whole.value)
    limits = {}
    for metric in METRICS:
        levels = {level: found[metric, level] for level in LEVELS if (metric, level) in found}
        limits[metric] = completed(metric, {level: at.value for level, at in levels.items()})
    try:
        return AlertThresholds(**limits)
    except InvalidInput as refused:
        metric = refused.field.split(".")[1]
        warning, critical = (found.get((metric, level), Found(None, _DEFAULT)).where for level in LEVELS)
        if warning == critical == _CODE:
            raise
        raise InvalidInput(f"{refused.field} ({critical})", refused.value, f"{refused.allowed} ({warning})") from None


def _levels_origins(found: Findings, whole: Found) -> dict[str, str]:
    """Of the thresholds together, and of each metric's."""
    if whole.value is not None:
        return {f"{THRESHOLDS}.{metric}": whole.where for metric in METRICS}
    wheres = {
        metric: dict.fromkeys(found[metric, level].where for level in LEVELS if (metric, level) in found)
        for metric in METRICS
    }
    every = {THRESHOLDS: dict.fromkeys(where for some in wheres.values() for where in some)}
    named = every | {f"{THRESHOLDS}.{metric}": some for metric, some in wheres.items()}
    return {name: ", ".join(some) or whole.where for name, some in named.items()}


def _named(name: str, origins: Mapping[str, str]) -> str:
    return name if origins[name] in (_CODE, _DEFAULT) else origins[name]
