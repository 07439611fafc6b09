"""Experiments: questions through an engine, evidence from its store, a verdict and a report; from Python or a spec."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abswitch.experiments.ab_test import ABTestResult, ab_test_plan, run_ab_test
    from abswitch.experiments.arrivals import ClosedLoop, Poisson, Trace
    from abswitch.experiments.asking import Progress, RequestBudget, RequestCounts
    from abswitch.experiments.canary import CanaryResult, run_canary
    from abswitch.experiments.conduct import Experiment
    from abswitch.experiments.live import bandit_plan, compare_live, run_bandit, switchback_plan
    from abswitch.experiments.paired import paired_from_shadow, paired_plan, run_paired
    from abswitch.experiments.planning import ObservedTraffic, PlannedExperiment, plan
    from abswitch.experiments.power_chart import power_chart
    from abswitch.experiments.prompts import Question
    from abswitch.experiments.publishing import publish
    from abswitch.experiments.replaying import Replayed, ReplayRun, replay
    from abswitch.experiments.report import write_report
    from abswitch.experiments.runs import open_run
    from abswitch.experiments.spec import ExperimentSpec
    from abswitch.experiments.specfile import read_spec
    from abswitch.experiments.switchback import run_switchback
    from abswitch.experiments.timing import SwitchTiming, switch_timing
    from abswitch.experiments.trial import ExperimentResult
    from abswitch.rollout.replay import WhatIf

# Resolved at first use: the command line needs little of it, and the statistics take most of a second to import.
_HOME = {
    "ABTestResult": "ab_test",
    "CanaryResult": "canary",
    "ClosedLoop": "arrivals",
    "Experiment": "conduct",
    "ExperimentResult": "trial",
    "ExperimentSpec": "spec",
    "ObservedTraffic": "planning",
    "PlannedExperiment": "planning",
    "Poisson": "arrivals",
    "Progress": "asking",
    "Question": "prompts",
    "ReplayRun": "replaying",
    "Replayed": "replaying",
    "RequestBudget": "asking",
    "RequestCounts": "asking",
    "SwitchTiming": "timing",
    "Trace": "arrivals",
    "WhatIf": "replaying",
    "ab_test_plan": "ab_test",
    "bandit_plan": "live",
    "compare_live": "live",
    "open_run": "runs",
    "paired_from_shadow": "paired",
    "paired_plan": "paired",
    "plan": "planning",
    "power_chart": "power_chart",
    "publish": "publishing",
    "read_spec": "specfile",
    "replay": "replaying",
    "run_ab_test": "ab_test",
    "run_bandit": "live",
    "run_canary": "canary",
    "run_paired": "paired",
    "run_switchback": "switchback",
    "switch_timing": "timing",
    "switchback_plan": "live",
    "write_report": "report",
}

__all__ = [
    "ABTestResult",
    "CanaryResult",
    "ClosedLoop",
    "Experiment",
    "ExperimentResult",
    "ExperimentSpec",
    "ObservedTraffic",
    "PlannedExperiment",
    "Poisson",
    "Progress",
    "Question",
    "ReplayRun",
    "Replayed",
    "RequestBudget",
    "RequestCounts",
    "SwitchTiming",
    "Trace",
    "WhatIf",
    "ab_test_plan",
    "bandit_plan",
    "compare_live",
    "open_run",
    "paired_from_shadow",
    "paired_plan",
    "plan",
    "power_chart",
    "publish",
    "read_spec",
    "replay",
    "run_ab_test",
    "run_bandit",
    "run_canary",
    "run_paired",
    "run_switchback",
    "switch_timing",
    "switchback_plan",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'abswitch.experiments' has no attribute {name!r}")
    found = getattr(import_module(f"abswitch.experiments.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
