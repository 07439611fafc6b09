"""`Subject`: what a report is about, read from a result and its store, whatever the design and however many arms."""

from __future__ import annotations

from dataclasses import dataclass

from abswitch.engine import SwitchingEngine
from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.canary import CanaryResult

Result = ABTestResult | CanaryResult
CANARY = "canary"
_OTHERS = """
SELECT DISTINCT arm, assigned_version FROM requests
WHERE operation_id = ? AND starts_with(arm, 'candidate-') ORDER BY arm
"""


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison.

    Attributes:
        name: as in the store: `stable`, `candidate`, and of several candidates `candidate-2`, ….
        version: the version behind it.
    """

    name: str
    version: str

    @property
    def role(self) -> str:
        """`baseline`, or what the arm is called."""
        return "baseline" if self.name == "stable" else self.name

    @property
    def others(self) -> tuple[str, ...]:
        """Names of further arms whose requests count as this one's: a shadow's copies are its candidate's answers."""
        return ("shadow",) if self.name == "candidate" else ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An experiment as its store knows it.

    Attributes:
        design: `randomised`, `paired`, `switchback`, `bandit` or `canary`.
        arms: the baseline first, then the candidate, then any others.
        started_at_s, ended_at_s: seconds since the epoch; what was asked afterwards is no part of the comparison.
    """

    experiment: str
    operation_id: str
    model_id: str
    design: str
    arms: tuple[Arm, ...]
    started_at_s: float
    ended_at_s: float

    @property
    def baseline(self) -> str:
        """Its version."""
        return self.arms[0].version

    @property
    def candidate(self) -> str:
        """The version of the first candidate."""
        return self.arms[1].version

    @property
    def versions(self) -> tuple[str, ...]:
        """Of every arm."""
        return tuple(arm.version for arm in self.arms)


def subject_of(engine: SwitchingEngine, result: Result) -> Subject:
    """What a result is about."""
    canary = isinstance(result, CanaryResult)
    sides = (result.baseline, result.candidate) if isinstance(result, CanaryResult) else _sides(result)
    others = engine.store.rows(_OTHERS, (result.operation_id,))
    return Subject(
        experiment=result.experiment,
        operation_id=result.operation_id,
        model_id=result.handle.status.model_id,
        design=CANARY if canary else result.plan.design,  # type: ignore[union-attr]  # no canary has a plan
        arms=(Arm("stable", sides[0]), Arm("candidate", sides[1]), *(Arm(*other) for other in others)),
        started_at_s=result.started_at_s,
        ended_at_s=result.started_at_s + result.elapsed_s,
    )


def _sides(result: ABTestResult) -> tuple[str, str]:
    return result.plan.baseline, result.plan.candidate
