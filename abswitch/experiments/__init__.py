"""Experiments: questions through an engine, evidence from its store, a verdict, a report."""

from abswitch.experiments.ab_test import ABTestResult, run_ab_test
from abswitch.experiments.arrivals import ClosedLoop, Poisson, Trace
from abswitch.experiments.asking import Progress, RequestBudget, RequestCounts
from abswitch.experiments.prompts import Question
from abswitch.experiments.publish import publish
from abswitch.experiments.report import write_report
from abswitch.experiments.timing import SwitchTiming, switch_timing

__all__ = [
    "ABTestResult",
    "ClosedLoop",
    "Poisson",
    "Progress",
    "Question",
    "RequestBudget",
    "RequestCounts",
    "SwitchTiming",
    "Trace",
    "publish",
    "run_ab_test",
    "switch_timing",
    "write_report",
]
