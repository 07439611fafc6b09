"""Figures of an experiment for a notebook: matplotlib figures that render themselves as a cell's last line."""

from __future__ import annotations

from abswitch.engine import SwitchingEngine
from abswitch.experiments import forest, traffic
from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.chart import WIDE_IN, Chart
from abswitch.experiments.subject import Result


def estimates_chart(result: ABTestResult, *, width_in: float = WIDE_IN) -> Chart:
    """Every metric's estimate in both arms, with intervals, and the difference against its margin."""
    return forest.estimates_chart(result.plan, result.verdict, width_in=width_in)


def latency_chart(engine: SwitchingEngine, result: Result, *, width_in: float = WIDE_IN) -> Chart:
    """How many of each version's answers were complete within how many milliseconds."""
    return traffic.latency_chart(engine, result, width_in=width_in)


def traffic_chart(engine: SwitchingEngine, result: Result, *, width_in: float = WIDE_IN) -> Chart:
    """Requests per second by the version that served them, so that every change of the routes can be seen."""
    return traffic.traffic_chart(engine, result, width_in=width_in)
