"""`Reading`: one metric of a verdict in the words and units that people read, alike in every table, card and figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from abswitch.stats import (
    AnalysisPlan,
    ArmEstimate,
    Comparison,
    Direction,
    MarginOutcome,
    Metric,
    Rate,
    Ratio,
    Role,
    Verdict,
    non_inferiority,
    tost_equivalence,
)

_GUARDRAIL = {
    MarginOutcome.SHOWN: ("holds", "good"),
    MarginOutcome.REFUTED: ("harmed", "bad"),
    MarginOutcome.OPEN: ("not shown to hold", "open"),
}


class Words(NamedTuple):
    """A value, and the smaller print beside it."""

    value: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Unit:
    """How a metric's numbers are shown: multiplied by `scale`, with as many decimals, followed by a symbol.

    Attributes:
        difference_symbol: differences of percentages are points, not percent.
    """

    scale: float = 1.0
    symbol: str = ""
    difference_symbol: str = ""
    decimals: int = 3

    def show(self, value: float, *, signed: bool = False) -> str:
        """The bare number; a dash where there is none."""
        if not math.isfinite(value):
            return "–"
        return f"{value * self.scale:{'+' if signed else ''},.{self.decimals}f}".replace("-", "−")

    def value(self, value: float) -> str:
        """A value with its symbol."""
        return self.show(value) + (self.symbol if math.isfinite(value) else "")

    def difference(self, value: float) -> str:
        """A difference with sign and symbol."""
        return self.show(value, signed=True) + (self.difference_symbol if math.isfinite(value) else "")


def unit_of(metric: Metric, largest: float, half_width: float) -> Unit:
    """Percent for rates, ms or s for durations, tokens/s, else plain; shows two digits of the interval's half-width.

    Args:
        largest: what the values reach; decides between ms and s.
        half_width: of the difference's interval; NaN shows three decimals.
    """
    scale, symbol, difference_symbol = _symbols(metric, largest)
    if isinstance(metric, Rate):
        decimals = 1
    elif math.isfinite(half_width) and half_width > 0:
        decimals = min(6, max(0, 1 - math.floor(math.log10(half_width * scale))))
    else:
        decimals = 3
    return Unit(scale, symbol, difference_symbol, decimals)


def _symbols(metric: Metric, largest: float) -> tuple[float, str, str]:
    if isinstance(metric, Rate):
        return 100.0, " %", " points"
    if isinstance(metric, Ratio):
        per_second = metric.denominator.endswith("_s") and metric.numerator.endswith("tokens")
        return (1.0, " tokens/s", " tokens/s") if per_second else (1.0, "", "")
    if metric.column.endswith("_s"):
        return (1000.0, " ms", " ms") if largest < 1.0 else (1.0, " s", " s")
    return 1.0, "", ""


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric with what was found; `comparison` is None where an arm had no values at all."""

    metric: Metric
    comparison: Comparison | None
    unit: Unit

    @property
    def name(self) -> str:
        return self.metric.name

    @property
    def about(self) -> str:
        """Role, kind and direction."""
        better = "more" if self.metric.direction == Direction.INCREASE else "less"
        return f"{self.metric.role} {self.metric.kind}, {better} is better"

    @property
    def margin(self) -> str:
        """The margin as it was agreed."""
        if self.metric.margin is None:
            return "none"
        shown = f"{self.metric.margin * self.unit.scale:g}{self.unit.difference_symbol}"
        return f"{shown} worse at most" if self.metric.role == Role.GUARDRAIL else f"±{shown}"

    @property
    def baseline(self) -> Words:
        """The baseline's own estimate."""
        return self._arm(self.comparison.baseline if self.comparison else None)

    @property
    def candidate(self) -> Words:
        """The candidate's own estimate."""
        return self._arm(self.comparison.candidate if self.comparison else None)

    @property
    def difference(self) -> Words:
        """Candidate minus baseline, with its interval."""
        found = self.comparison
        if found is None or not found.attainable:
            return Words("–", "" if found is None else (found.why_not or ""))
        told = not isinstance(self.metric, Rate) and math.isfinite(found.relative)  # percent of percent would confuse
        relative = f", {100 * found.relative:+.1f} %".replace("-", "−") if told else ""
        return Words(self.unit.difference(found.estimate), f"{self.interval}{relative}, p {p_words(found.p_value)}")

    @property
    def interval(self) -> str:
        """The interval of the difference."""
        if self.comparison is None:
            return "–"
        low, high = self.comparison.low, self.comparison.high
        return f"{self.unit.show(low, signed=True)} to {self.unit.show(high, signed=True)}"

    @property
    def finding(self) -> str:
        """What was found, in a word or two; see `tone` for how good that is."""
        return self._finding[0]

    @property
    def tone(self) -> str:
        """`good`, `bad` or `open`."""
        return self._finding[1]

    @property
    def sentence(self) -> str:
        """Both arms and the difference in one line."""
        if self.comparison is None or not self.comparison.attainable:
            return f"{self.name} could not be compared."
        return (
            f"{self.name} is {self.baseline.value} with the baseline and {self.candidate.value} with the candidate: "
            f"{self.difference.value}, {1 - self.comparison.alpha:.0%} interval {self.interval}."
        )

    @property
    def _finding(self) -> tuple[str, str]:
        found, margin = self.comparison, self.metric.margin
        if found is None or not found.attainable:
            return "no result", "open"
        if self.metric.role == Role.GUARDRAIL and margin is not None:
            return _GUARDRAIL[non_inferiority(found, margin=margin, direction=self.metric.direction).outcome]
        if margin is not None and tost_equivalence(found, margin=margin).outcome is MarginOutcome.SHOWN:
            return "no difference that matters", "good"
        low, high = (found.low, found.high) if self.metric.sign > 0 else (-found.high, -found.low)
        if low > 0:
            return "better", "good"
        return ("worse", "bad") if high < 0 else ("not told apart", "open")

    def _arm(self, arm: ArmEstimate | None) -> Words:
        if arm is None or not arm.n:
            return Words("–", "no values")
        return Words(
            self.unit.value(arm.value), f"{self.unit.show(arm.low)} to {self.unit.show(arm.high)}, n {arm.n:,}"
        )


def readings_of(plan: AnalysisPlan, verdict: Verdict) -> tuple[Reading, ...]:
    """Every metric of a plan, in its order."""
    return tuple(_reading(metric, verdict.comparisons.get(metric.name)) for metric in plan.metrics)


def _reading(metric: Metric, found: Comparison | None) -> Reading:
    if found is None:
        return Reading(metric, None, unit_of(metric, math.nan, math.nan))
    values = filter(math.isfinite, (abs(found.baseline.value), abs(found.candidate.value)))
    return Reading(metric, found, unit_of(metric, max(values, default=0.0), (found.high - found.low) / 2))


def p_words(p_value: float) -> str:
    """A p-value as it is usually written."""
    if not math.isfinite(p_value):
        return "unknown"
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.3f}"
