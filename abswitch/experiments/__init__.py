"""Experiments: questions through an engine, evidence from its store, a verdict, a report."""

from abswitch.experiments.ab_test import ABTestResult, Progress, RequestCounts, run_ab_test
from abswitch.experiments.prompts import Question
from abswitch.experiments.publish import publish
from abswitch.experiments.report import write_report
from abswitch.experiments.timing import SwitchTiming, switch_timing

__all__ = [
    "ABTestResult",
    "Progress",
    "Question",
    "RequestCounts",
    "SwitchTiming",
    "publish",
    "run_ab_test",
    "switch_timing",
    "write_report",
]
