"""Precedence, every variable, every refusal, and the page that documents them."""

from __future__ import annotations

import copy
import pickle
import re
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abswitch import InvalidInput, ModelSwitchingConfig, SwitchingEngine, cli
from abswitch.rollout.limits import LEVELS, METRICS, AlertThresholds, Limit, is_surely_above
from abswitch.settings.config import SETTINGS
from abswitch.settings.fields import PREFIX
from abswitch.settings.sources import THRESHOLDS, threshold_variables, variables_of
from abswitch.settings.table import page

PAGE = Path(__file__).parent.parent / "docs/settings.md"
# For each setting a value that is not its default, as it is written in the environment, and what it means.
OTHER: Mapping[str, tuple[str, Any]] = {
    "enabled": ("off", False),
    "max_cached_models": ("7", 7),
    "cache_memory_limit_gb": ("3.5", 3.5),
    "device_cache_memory_limit_gb": ("70", 70.0),
    "cpu_core_groups": ("3", 3),
    "default_switch_strategy": ("canary", "canary"),
    "max_concurrent_switches": ("9", 9),
    "max_version_history": ("12", 12),
    "switch_timeout_seconds": ("12.5", 12.5),
    "max_transition_time_seconds": ("33", 33.0),
    "enable_automatic_rollback": ("false", False),
    "golden_prompt_check": ("0", False),
    "max_queue_wait_seconds": ("2", 2.0),
    "max_queued_requests": ("17", 17),
    "restart_initial_seconds": ("0.5", 0.5),
    "restart_max_seconds": ("90", 90.0),
    "max_restarts": ("0", 0),
    "restart_window_seconds": ("60", 60.0),
    "enable_health_checks": ("No", False),
    "monitoring_interval_seconds": ("5", 5.0),
    "health_probe_interval_seconds": ("4", 4.0),
    "health_check_timeout_seconds": ("20", 20.0),
    "metrics_window_seconds": ("30", 30.0),
    "alert_min_requests": ("5", 5),
    "alert_cooldown_seconds": ("0", 0.0),
    "alert_history_size": ("10", 10),
    "alert_webhook_url": ("http://127.0.0.1:9/hook", "http://127.0.0.1:9/hook"),
    "alert_webhook_secret": ("s3cret", "s3cret"),
}
VARIABLES = [
    (name, variable) for name, one in SETTINGS.items() if name != THRESHOLDS for variable in variables_of(name, one)
]
LEVEL_VARIABLES = [
    (metric, level, variable)
    for metric in METRICS
    for level in LEVELS
    for variable in threshold_variables(metric, level)
]


def load(environ: Mapping[str, str] | None = None, path: Path | None = None, **settings: Any) -> ModelSwitchingConfig:
    named = {PREFIX + name: value for name, value in (environ or {}).items()}
    return ModelSwitchingConfig.load(path, environ=named, **settings)


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- the documented shape ---------------------------------------------------------------------------------------------


def test_the_documented_call() -> None:
    config = ModelSwitchingConfig(
        max_cached_models=10,
        enable_health_checks=True,
        default_switch_strategy="gradual",
        alert_thresholds={"error_rate": 0.05, "latency_p95": 5000.0},
    )
    assert config.max_cached_models == 10
    assert config.limits.error_rate == Limit(0.05, 0.10)
    assert config.limits.latency_p95 == Limit(5000.0, 10_000.0)


def test_it_is_a_frozen_value() -> None:
    config = load(max_cached_models=3)
    with pytest.raises(AttributeError):
        config.max_cached_models = 4  # type: ignore[misc]
    assert config == load(max_cached_models=3)
    assert hash(config) == hash(load(max_cached_models=3))
    assert pickle.loads(pickle.dumps(config)) == config == copy.deepcopy(config)


# --- precedence -------------------------------------------------------------------------------------------------------


def test_code_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = written(tmp_path, "s.toml", "max_cached_models = 2\nmax_queued_requests = 20\nmax_restarts = 2\n")
    config = load({"MAX_CACHED_MODELS": "3", "MAX_QUEUED_REQUESTS": "30"}, path, max_cached_models=4)
    assert (config.max_cached_models, config.max_queued_requests, config.max_restarts) == (4, 30, 2)
    assert config.max_concurrent_switches == 3
    assert [config.origins[name] for name in ("max_cached_models", "max_queued_requests", "max_restarts")] == [
        "code",
        "VLLM_MODEL_SWITCHING_MAX_QUEUED_REQUESTS",
        "s.toml: max_restarts",
    ]
    assert config.origins["max_concurrent_switches"] == "default"


def test_the_constructor_reads_the_environment_and_the_file_it_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PREFIX + "CONFIG", str(written(tmp_path, "s.yaml", "max_restarts: 2\nmax_cached_models: 9\n")))
    monkeypatch.setenv(PREFIX + "MAX_CACHED_MODELS", "3")
    config = ModelSwitchingConfig(max_queued_requests=4)
    assert (config.max_queued_requests, config.max_cached_models, config.max_restarts) == (4, 3, 2)
    assert replace(config, max_restarts=1) == ModelSwitchingConfig(max_queued_requests=4, max_restarts=1)


def test_replace_keeps_what_was_said_although_the_environment_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(max_cached_models=3)
    monkeypatch.setenv(PREFIX + "MAX_CONCURRENT", "8")
    assert replace(config, max_restarts=1).max_concurrent_switches == 3


def test_a_path_given_in_code_counts_before_the_one_in_the_environment(tmp_path: Path) -> None:
    one, other = (written(tmp_path, f"{n}.toml", f"max_cached_models = {n}") for n in (1, 2))
    assert load({"CONFIG": str(other)}, one).max_cached_models == 1
    assert load({"CONFIG": str(other)}).max_cached_models == 2


def test_an_engine_without_a_config_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PREFIX + "MAX_CONCURRENT", "8")
    with_defaults = SwitchingEngine(store=":memory:")
    with_defaults.close()
    assert with_defaults.config.max_concurrent_switches == 8


# --- the environment --------------------------------------------------------------------------------------------------


def test_every_setting_is_tried_here() -> None:
    assert set(OTHER) == set(SETTINGS) - {THRESHOLDS}
    assert all(value != SETTINGS[name].default for name, (_, value) in OTHER.items())


@pytest.mark.parametrize(("name", "variable"), VARIABLES)
def test_every_variable_sets_its_setting(name: str, variable: str) -> None:
    text, value = OTHER[name]
    scale = SETTINGS[name].scaled.get(variable.removeprefix(PREFIX), 1.0)
    config = ModelSwitchingConfig.load(environ={variable: text})
    assert getattr(config, name) == (value if scale == 1.0 else value * scale)
    assert config.origins[name] == variable


@pytest.mark.parametrize(("metric", "level", "variable"), LEVEL_VARIABLES)
def test_every_level_has_its_variables(metric: str, level: str, variable: str) -> None:
    config = ModelSwitchingConfig.load(environ={variable: "0.25"})
    limit = getattr(config.limits, metric)
    assert getattr(limit, level) == 0.25
    assert config.origins[THRESHOLDS] == variable
    shown = {name: where for name, _, where in config.shown()}
    assert [name for name, where in shown.items() if where == variable] == [f"{THRESHOLDS}.{metric}"]


@pytest.mark.parametrize(
    "documented",
    [
        "ENABLED",
        "MAX_CACHED_MODELS",
        "CACHE_SIZE",
        "CACHE_MEMORY_GB",
        "MAX_CONCURRENT",
        "DEFAULT_STRATEGY",
        "TIMEOUT",
        "ENABLE_HEALTH_CHECKS",
        "ERROR_RATE_WARNING",
        "ERROR_RATE_CRITICAL",
        "LATENCY_WARNING",
        "MEMORY_CRITICAL",
    ],
)
def test_the_documented_spellings_exist(documented: str) -> None:
    assert PREFIX + documented in {*(v for _, v in VARIABLES), *(v for *_, v in LEVEL_VARIABLES)}


def test_the_cache_size_is_in_mebibytes() -> None:
    config = load({"CACHE_SIZE": "2048"})
    assert config.cache_memory_limit_gb == 2.0
    assert config.host_memory_budget_bytes == 2 << 30
    assert load({"CACHE_MEMORY_GB": "none"}).host_memory_budget_bytes is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (name, text)
        for name in OTHER
        for text in ("", "nonsense!", "-1", "nan", "inf")
        if name != "alert_webhook_secret" or not text  # any other text may be a secret
    ],
)
def test_a_bad_variable_names_itself_and_what_is_allowed(name: str, text: str) -> None:
    variable = variables_of(name, SETTINGS[name])[0]
    with pytest.raises(InvalidInput) as refused:
        ModelSwitchingConfig.load(environ={variable: text})
    assert refused.value.field == variable
    assert refused.value.value == ("(hidden)" if SETTINGS[name].secret else text)
    assert refused.value.allowed


def test_an_unknown_variable_names_its_neighbours_and_not_its_value() -> None:
    with pytest.raises(InvalidInput) as refused:
        load({"MAX_CACHE_MODELS": "hush"})
    assert "did you mean VLLM_MODEL_SWITCHING_MAX_CACHED_MODELS" in str(refused.value)
    assert "hush" not in str(refused.value)


def test_two_spellings_at_once_are_refused() -> None:
    with pytest.raises(InvalidInput, match="only one of .*CACHE_MEMORY_GB and .*CACHE_SIZE"):
        load({"CACHE_SIZE": "2048", "CACHE_MEMORY_GB": "2"})


def test_variables_of_others_are_left_alone() -> None:
    assert ModelSwitchingConfig.load(environ={"VLLM_LOGGING_LEVEL": "x", "MAX_CACHED_MODELS": "x"}) == load()


def test_a_secret_is_never_shown() -> None:
    config = load({"ALERT_WEBHOOK_SECRET": "s3cret"})
    assert "s3cret" not in repr(config)
    assert "s3cret" not in str(list(config.shown()))


# --- files ------------------------------------------------------------------------------------------------------------

TOML = """
max_cached_models = 3
cache_memory_limit_gb = 12
default_switch_strategy = "canary"
[alert_thresholds]
error_rate = 0.02
latency_p95 = { warning = 2000.0, critical = 3000.0 }
latency_p99 = [4000, 9000]
"""
YAML = """
max_cached_models: 3
cache_memory_limit_gb: 12
default_switch_strategy: canary
alert_thresholds:
  error_rate: 0.02
  latency_p95: {warning: 2000.0, critical: 3000.0}
  latency_p99: [4000, 9000]
"""


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    toml = load(path=written(tmp_path, "s.toml", TOML))
    assert toml == load(path=written(tmp_path, "s.yml", YAML))
    assert (toml.max_cached_models, toml.cache_memory_limit_gb, toml.default_switch_strategy) == (3, 12.0, "canary")
    assert toml.limits.error_rate == Limit(0.02, 0.04)
    assert toml.limits.latency_p95 == Limit(2000.0, 3000.0)
    assert toml.limits.latency_p99 == Limit(4000.0, 9000.0)
    assert load(path=written(tmp_path, "empty.yaml", "")) == load()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "n.toml",
            """
            cache_memory_limit_gb = "none"
            alert_webhook_url = "None"
            alert_webhook_secret = " none "
            [alert_thresholds]
            latency_p95 = "none"
            error_rate = {warning = 0.02, critical = "none"}
            memory_usage = ["none", 0.9]
            """,
        ),
        (
            "n.yaml",
            """
            cache_memory_limit_gb: none
            alert_webhook_url: None
            alert_webhook_secret: null
            alert_thresholds:
              latency_p95: none
              error_rate: {warning: 0.02, critical: null}
              memory_usage: [none, 0.9]
            """,
        ),
    ],
)
def test_a_file_may_say_none(tmp_path: Path, name: str, text: str) -> None:
    found = load(path=written(tmp_path, name, textwrap.dedent(text)))
    assert (found.cache_memory_limit_gb, found.alert_webhook_url, found.alert_webhook_secret) == (None, None, None)
    assert found.origins["cache_memory_limit_gb"] == f"{name}: cache_memory_limit_gb"
    limits = found.limits
    assert (limits.latency_p95, limits.error_rate) == (Limit(None, None), Limit(0.02, None))
    assert limits.memory_usage == Limit(None, 0.9)


@pytest.mark.parametrize(
    ("name", "text", "field", "says"),
    [
        ("s.toml", "max_cached_models = 'none'", "s.toml: max_cached_models", "a whole number of at least 1"),
        ("s.toml", "alert_thresholds = 'none'", "s.toml: alert_thresholds", "metrics with their limits"),
        ("s.toml", "[alert_thresholds]\nlatency_p95 = 'fast'", "s.toml: alert_thresholds.latency_p95", "; none: it is"),
        ("s.toml", "max_cached_model = 3", "s.toml.max_cached_model", "max_cached_models"),
        ("s.toml", 'max_cached_models = "3"', "s.toml: max_cached_models", "a whole number of at least 1"),
        ("s.yaml", "enabled: 1", "s.yaml: enabled", "True or False"),
        ("s.toml", "alert_thresholds = 3", "s.toml: alert_thresholds", "metrics with their limits"),
        (
            "s.toml",
            "[alert_thresholds]\nerror_rate = 5",
            "s.toml: alert_thresholds.error_rate",
            "above 0 and at most 1",
        ),
        ("s.toml", "[alert_thresholds]\nlatency = 5", "s.toml: alert_thresholds.latency", "latency_p95"),
        ("s.toml", "max_cached_models = ", "s.toml", "valid TOML"),
        ("s.yaml", "a: [", "s.yaml", "valid YAML"),
        ("s.yaml", "max_restarts: 2024-13-45", "s.yaml", "valid YAML"),
        ("s.yaml", "- 1", "s.yaml", "settings by name"),
        ("s.yaml", "!!python/object/apply:os.getcwd []", "s.yaml", "valid YAML"),
        ("s.ini", "", "path", ".toml"),
    ],
)
def test_a_bad_file_names_its_key(tmp_path: Path, name: str, text: str, field: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load(path=written(tmp_path, name, text))
    assert refused.value.field.removeprefix(f"{tmp_path}/") == field
    assert says in refused.value.allowed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_cached_models: 3\nmax_cached_models: 4", "'max_cached_models' is there twice, first in line 1 (line 2)"),
        (
            "alert_thresholds:\n  error_rate: 1\n\n  error_rate: 1",
            "'error_rate' is there twice, first in line 2 (line 4)",
        ),
        ("alert_webhook_secret: hush\nalert_webhook_secret: hush", "twice, first in line 1"),
        ("alert_webhook_secret: hush: hush", "mapping values are not allowed here (line 1)"),
    ],
)
def test_a_mistake_in_yaml_is_told_with_its_line_and_without_what_it_says(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        load(path=written(tmp_path, "s.yaml", text))
    assert says in str(refused.value) and "hush" not in str(refused.value)


def test_a_number_in_yaml_may_have_an_exponent_as_in_toml(tmp_path: Path) -> None:
    assert load(path=written(tmp_path, "s.yaml", "switch_timeout_seconds: 1e3")).switch_timeout_seconds == 1000.0


def test_a_file_that_is_not_there_names_what_named_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="path: got .*gone.toml.*No such file"):
        load(path=tmp_path / "gone.toml")
    with pytest.raises(InvalidInput, match="VLLM_MODEL_SWITCHING_CONFIG: got .*gone.toml"):
        load({"CONFIG": str(tmp_path / "gone.toml")})
    with pytest.raises(InvalidInput, match=r"VLLM_MODEL_SWITCHING_CONFIG: got ''; allowed: a file that ends in \.toml"):
        load({"CONFIG": ""})


@pytest.mark.parametrize("path", [5, "", b"s.toml", "a\0.toml"])
def test_what_is_no_path_is_named(path: Any) -> None:
    with pytest.raises(InvalidInput, match="path: got"):
        load(path=path)


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"max_cached_models": 0}, "max_cached_models"),
        ({"max_cached_models": True}, "max_cached_models"),
        ({"max_cached_models": "3"}, "max_cached_models"),
        ({"cache_memory_limit_gb": "none"}, "cache_memory_limit_gb"),
        ({"default_switch_strategy": "slowly"}, "default_switch_strategy"),
        ({"switch_timeout_seconds": float("nan")}, "switch_timeout_seconds"),
        ({"max_queue_wait_seconds": 0}, "max_queue_wait_seconds"),
        ({"alert_webhook_url": "ftp://x"}, "alert_webhook_url"),
        ({"alert_webhook_url": "http://[::1"}, "alert_webhook_url"),
        ({"alert_webhook_url": "http://x:99999/"}, "alert_webhook_url"),
        ({"alert_webhook_url": "http://mia:pw@x/"}, "alert_webhook_url"),
        ({"alert_webhook_secret": ""}, "alert_webhook_secret"),
        ({"restart_initial_seconds": 90.0}, "restart_initial_seconds"),
        ({"restart_initial_seconds": 90.0, "restart_max_seconds": 80.0}, "restart_max_seconds"),
        ({"alert_thresholds": {"error_rate": (0.2, 0.1)}}, "alert_thresholds.error_rate.critical"),
        ({"alert_thresholds": {"error_rate": (0.2, 0.3, 0.4)}}, "alert_thresholds.error_rate"),
        ({"alert_thresholds": {"throughput": (10, 20)}}, "alert_thresholds.throughput.critical"),
        ({"alert_thresholds": {"latency": 5}}, "alert_thresholds.latency"),
        ({"alert_thresholds": {"latency_p95": "fast"}}, "alert_thresholds.latency_p95"),
        ({"alert_thresholds": {"latency_p95": {"warn": 5}}}, "alert_thresholds.latency_p95.warn"),
    ],
)
def test_a_bad_value_in_code_names_its_field(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        ModelSwitchingConfig(**settings)
    assert refused.value.field == field
    with pytest.raises(InvalidInput):
        load(**settings)


@pytest.mark.parametrize(
    ("environ", "settings", "says"),
    [
        (
            {"RESTART_INITIAL_SECONDS": "100"},
            {},
            f"{PREFIX}RESTART_INITIAL_SECONDS: got 100.0; allowed: at most restart_max_seconds, 60 (default)",
        ),
        (
            {"RESTART_MAX_SECONDS": "0.5"},
            {},
            f"{PREFIX}RESTART_MAX_SECONDS: got 0.5; allowed: at least restart_initial_seconds, 1 (default)",
        ),
        (
            {"RESTART_MAX_SECONDS": "9", "RESTART_INITIAL_SECONDS": "10"},
            {},
            f"{PREFIX}RESTART_MAX_SECONDS: got 9.0; allowed: at least restart_initial_seconds, 10 "
            f"({PREFIX}RESTART_INITIAL_SECONDS)",
        ),
        (
            {"RESTART_MAX_SECONDS": "9"},
            {"restart_initial_seconds": 10.0},
            f"{PREFIX}RESTART_MAX_SECONDS: got 9.0; allowed: at least restart_initial_seconds, 10 (code)",
        ),
        (
            {},
            {"restart_initial_seconds": 90.0},
            "restart_initial_seconds: got 90.0; allowed: at most restart_max_seconds, 60 (default)",
        ),
        (
            {"ERROR_RATE_WARNING": "0.2", "ERROR_RATE_CRITICAL": "0.1"},
            {},
            f"alert_thresholds.error_rate.critical ({PREFIX}ERROR_RATE_CRITICAL): got 0.1; allowed: "
            f"at least the warning level, 0.2 ({PREFIX}ERROR_RATE_WARNING)",
        ),
        (
            {"THROUGHPUT_CRITICAL": "20"},
            {"alert_thresholds": {"throughput": {"warning": 10.0}}},
            f"alert_thresholds.throughput.critical ({PREFIX}THROUGHPUT_CRITICAL): got 20.0; allowed: "
            "at most the warning level, 10 (code)",
        ),
    ],
)
def test_of_two_values_that_contradict_each_other_it_is_told_where_each_is_from(
    environ: dict[str, str], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        load(environ, **settings)
    assert str(refused.value) == says


def test_of_two_keys_in_a_file_it_is_told_where_each_is_from(tmp_path: Path) -> None:
    path = written(tmp_path, "s.toml", "restart_max_seconds = 2\n[alert_thresholds]\nerror_rate = 0.05\n")
    with pytest.raises(InvalidInput, match=r"s.toml: restart_max_seconds: .* 3 \(VLLM_.*RESTART_INITIAL_SECONDS\)$"):
        load({"RESTART_INITIAL_SECONDS": "3"}, path)
    with pytest.raises(InvalidInput, match=r"warning level, 0.05 \(s.toml: alert_thresholds.error_rate\)$"):
        load({"ERROR_RATE_CRITICAL": "0.03"}, path)


@pytest.mark.parametrize(
    "url", ["http://mia:pw@host/x", "https://mia:p/w@host/", "mia:pw@host", "http://mia:pw@host:99999/", "ftp://pw@h"]
)
def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    path = written(tmp_path, "s.yaml", f"alert_webhook_url: '{url}'\n")
    given: list[dict[str, Any]] = [
        {"environ": {"ALERT_WEBHOOK_URL": url}},
        {"path": path},
        {"alert_webhook_url": url},
    ]
    for one in given:
        with pytest.raises(InvalidInput, match=r"\(hidden\)@.*without user or password") as refused:
            load(**one)
        assert not {"mia", "pw", "p", "w"} & set(re.split(r"\W", str(refused.value)))
    assert load(alert_webhook_url="https://h/@me?to=a@b").alert_webhook_url == "https://h/@me?to=a@b"


# --- thresholds -------------------------------------------------------------------------------------------------------


def test_of_one_level_the_other_follows_in_the_defaults_proportion() -> None:
    limits = AlertThresholds.of({"error_rate": 0.02, "latency_p99": {"critical": 900.0}, "throughput": 40.0})
    assert limits.error_rate == Limit(0.02, 0.04)
    assert limits.latency_p99 == Limit(450.0, 900.0)
    assert limits.throughput == Limit(40.0, 20.0)
    assert limits.latency_p95 == Limit(5000.0, 10_000.0)
    assert AlertThresholds.of({"error_rate": 0.8}).error_rate == Limit(0.8, 1.0)
    assert AlertThresholds.of({"error_rate": None}).error_rate == Limit()
    assert AlertThresholds.of({"memory_usage": 0.8}).memory_usage.critical == pytest.approx(0.95)


def test_the_typed_defaults_are_the_documented_ones() -> None:
    assert dict(AlertThresholds().items()) == {name: Limit(m.warning, m.critical) for name, m in METRICS.items()}
    assert load().limits == AlertThresholds()


def test_levels_merge_one_by_one(tmp_path: Path) -> None:
    path = written(tmp_path, "s.toml", "[alert_thresholds]\nerror_rate = 0.02\nlatency_p95 = 100\n")
    config = load(
        {"ERROR_RATE_CRITICAL": "0.3", "LATENCY_WARNING": "200"}, path, alert_thresholds={"latency_p99": 700.0}
    )
    assert config.limits.error_rate == Limit(0.02, 0.3)
    assert config.limits.latency_p95 == Limit(200.0, 400.0)
    assert config.limits.latency_p99 == Limit(700.0, 1400.0)
    assert load({"LATENCY_CRITICAL": "none"}).limits.latency_p95 == Limit(5000.0, None)


def test_levels_of_two_sources_that_contradict_each_other_are_refused_naming_both() -> None:
    with pytest.raises(
        InvalidInput, match=r"error_rate.critical \(VLLM_MODEL_SWITCHING_ERROR_RATE_CRITICAL\): .* \(code\)"
    ):
        load({"ERROR_RATE_CRITICAL": "0.2"}, alert_thresholds={"error_rate": 0.3})


def test_typed_thresholds_count_whole() -> None:
    given = AlertThresholds(error_rate=Limit(0.3, 0.4))
    assert load({"ERROR_RATE_CRITICAL": "0.2"}, alert_thresholds=given).limits == given


@pytest.mark.parametrize(
    ("count", "total", "tolerated", "surely"),
    [
        (0, 0, 0.1, False),
        (1, 1, 0.1, False),
        (2, 2, 0.1, False),
        (4, 4, 0.1, True),
        (2, 20, 0.1, False),
        (10, 20, 0.1, True),
        (105, 1000, 0.1, False),
        (140, 1000, 0.1, True),
    ],
)
def test_a_breach_is_beyond_chance(count: int, total: int, tolerated: float, surely: bool) -> None:
    assert is_surely_above(count, total, tolerated) is surely


# --- the page and the command -----------------------------------------------------------------------------------------


def test_the_page_is_what_the_settings_make_of_it() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: abswitch settings --markdown > docs/settings.md"


def test_every_setting_and_variable_is_on_the_page() -> None:
    text = page()
    assert [v for _, v in VARIABLES if f"`{v}`" not in text] == []
    assert [v for *_, v in LEVEL_VARIABLES if f"`{v}`" not in text] == []


def test_the_command_shows_what_is_in_force(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv(PREFIX + "MAX_CONCURRENT", "8")
    assert cli.main(["settings", "--file", str(written(tmp_path, "s.toml", "max_restarts = 2"))]) == 0
    shown = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert shown["max_concurrent_switches"] == ["8", PREFIX + "MAX_CONCURRENT"]
    assert shown["max_restarts"] == ["2", "s.toml:", "max_restarts"]
    assert cli.main(["settings", "--markdown"]) == 0
    assert capsys.readouterr().out == page()


def test_the_command_says_what_is_wrong_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(PREFIX + "MAX_CONCURRENT", "many")
    assert cli.main(["settings"]) == 65
    assert capsys.readouterr().err == (
        "abswitch settings: VLLM_MODEL_SWITCHING_MAX_CONCURRENT: got 'many'; allowed: a whole number of at least 1\n"
    )
