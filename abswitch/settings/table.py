"""The page that documents the settings, made from the settings themselves: `abswitch settings --markdown`."""

from __future__ import annotations

from collections.abc import Iterable

from abswitch.rollout.limits import METRICS, Metric
from abswitch.settings.config import SETTINGS
from abswitch.settings.fields import PREFIX, Setting
from abswitch.settings.sources import THRESHOLDS, threshold_variables, variables_of

_INTRODUCTION = f"""# Settings

<!-- Made by `abswitch settings --markdown`; a test holds the two together. -->

    from abswitch import ModelSwitchingConfig, SwitchingEngine

    config = ModelSwitchingConfig(max_cached_models=10, alert_thresholds={{"error_rate": 0.05, "latency_p95": 5000.0}})
    engine = SwitchingEngine(config)

A value comes from the first of these that gives it:

1. **code**: an argument of `ModelSwitchingConfig(…)`, or of `ModelSwitchingConfig.load(path, …)`;
2. **environment**: a variable below. Two spellings of one setting at once are refused;
3. **file**: TOML or YAML, with the names of the first column as keys. Its path is given to
   `ModelSwitchingConfig.load(path)`, or stands in `{PREFIX}CONFIG`;
4. **default**.

A value that cannot be read or is outside its range, a variable `{PREFIX}…` or a key that does not
exist, a file that cannot be read or has a key twice: each stops the start with an `InvalidInput` that names the
variable or the file's key, the value and what is allowed. Of two values that contradict each other it names where each
comes from. `abswitch settings` shows what is in force and where it comes from; `config.origins` says the same in code.

Where "none" is allowed, code gives None, and the environment and a file the word `none` (TOML has no null; in YAML
`null` says it, too).

    # settings.toml
    max_cached_models = 3
    cache_memory_limit_gb = "none"                      # no limit in bytes

    [alert_thresholds]
    error_rate = 0.02                                   # warning; critical follows at twice that
    latency_p95 = {{ warning = 2000.0, critical = 3000.0 }}
"""

_THRESHOLDS = """## `alert_thresholds`

Metric → a number (the warning level), `(warning, critical)`, a dictionary `{"warning": …, "critical": …}`, or None
for no limit. Of a limit given at one level only, the other follows by the ratio below. A level given nowhere has its
default; `none` in the environment or in a file switches a level, or the whole limit, off. Levels are merged one by
one, so that a file may set what a variable then sharpens.

Where the last column says so, a **critical** breach also acts: it rolls the version's operation back, or outside an
operation returns an active version to the last good one (`enable_automatic_rollback`). See [health.md](health.md) for
what counts as a breach.
"""

_DROPPED = (
    ("`max_cache_size`", "said the same as `max_cached_models`"),
    (
        "`cache_memory_limit_gb` = 8",
        "the name is kept, the default is not: it would unload every second model of 4 billion parameters, unasked",
    ),
    (
        "`model_ttl_seconds`, `cleanup_interval_seconds`",
        "memory is given back when something else needs it; to unload an idle version only makes its next request slow",
    ),
    (
        "`request_timeout_seconds`",
        "a long answer is no fault. A request that waits is bounded by `max_queue_wait_seconds`, an engine that is "
        "silent by `health_check_timeout_seconds`, and a caller in a hurry by `asyncio.timeout`",
    ),
    (
        "`monitoring_interval_seconds` = 30, `health_check_timeout_seconds` = 10",
        "the names are kept, the defaults are not: a hung engine is to be found within 10 seconds",
    ),
    (
        "`max_transition_history`, `metrics_history_size`",
        "the history is the evidence: it is in the store, complete",
    ),
    ("`version_storage_path`, `audit_log_path`", "both are the store, `SwitchingEngine(store=…)`"),
    ("`api_*`, `allowed_origins`", "belong to the server that offers the interface, not to the engine"),
)


def page() -> str:
    """The whole page as Markdown."""
    rows = [_row(name, described) for name, described in SETTINGS.items()]
    thresholds = [_threshold(name, metric) for name, metric in METRICS.items()]
    parts = (
        _INTRODUCTION,
        "## Every setting\n\n" + _table(("setting", "default", "allowed", "what it does", "environment"), rows),
        _THRESHOLDS,
        _table(("metric", "unit", "warning", "critical", "ratio", "what", "environment", "acts"), thresholds),
        "## What is not here, and why\n\nNames that a reader of an earlier proposal of this system may look for:\n\n"
        + _table(("name", "why not"), _DROPPED),
    )
    return "\n".join(parts)


def _row(name: str, described: Setting) -> tuple[str, ...]:
    if name == THRESHOLDS:
        return f"`{name}`", "below", "see below", described.doc, "see below"
    return (
        f"`{name}`",
        f"`{_shown(described.default)}`",
        described.kind.words,
        described.doc,
        _variables(variables_of(name, described), described),
    )


def _variables(names: Iterable[str], described: Setting) -> str:
    shown = []
    for name in names:
        scale = described.scaled.get(name.removeprefix(PREFIX))
        shown.append(f"`{name}`" + ("" if scale is None else " (MiB)"))
    return ", ".join(shown)


def _threshold(name: str, metric: Metric) -> tuple[str, ...]:
    variables = (*threshold_variables(name, "warning"), *threshold_variables(name, "critical"))
    return (
        f"`{name}`",
        metric.unit,
        _shown(metric.warning),
        _shown(metric.critical),
        f"{metric.ratio:g}",
        metric.doc + (" (bad when small)" if metric.falls else ""),
        ", ".join(f"`{one}`" for one in variables),
        "yes" if metric.acts else "",
    )


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
