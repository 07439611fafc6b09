"""`Subject`: what a report is about, whatever its design and however many arms it has."""

from __future__ import annotations

from dataclasses import dataclass

from abswitch.experiments.ab_test import ABTestResult
from abswitch.experiments.canary import CanaryResult
from abswitch.serving.router import candidate_name

Result = ABTestResult | CanaryResult
CANARY = "canary"


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
    """An experiment.

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


def subject_of(result: Result) -> Subject:
    """What a result is about."""
    if isinstance(result, CanaryResult):
        design, baseline, candidates = CANARY, result.baseline, [result.candidate]
    else:
        design, baseline, candidates = result.plan.design, result.plan.baseline, [*result.verdicts]
    return Subject(
        experiment=result.experiment,
        operation_id=result.operation_id,
        model_id=result.handle.status.model_id,
        design=design,
        arms=(Arm("stable", baseline), *(Arm(candidate_name(i), one) for i, one in enumerate(candidates))),
        started_at_s=result.started_at_s,
        ended_at_s=result.started_at_s + result.elapsed_s,
    )
