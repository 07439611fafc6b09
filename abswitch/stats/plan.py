"""`AnalysisPlan`: what will be compared, and how, fixed before the first request meets the candidate."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from abswitch import checks
from abswitch.errors import InvalidInput
from abswitch.stats.group_sequential import OBRIEN_FLEMING, SPENDING
from abswitch.stats.metrics import Metric, Role, metric_of, metric_to_dict

RANDOMISED, PAIRED, SWITCHBACK, BANDIT = "randomised", "paired", "switchback", "bandit"
FIXED, SEQUENTIAL, GROUP_SEQUENTIAL = "fixed", "sequential", "group_sequential"
EVALUATIONS = (SEQUENTIAL, GROUP_SEQUENTIAL, FIXED)
"""When results are read: at any time, at a few planned looks, or once, at the end."""
FIXED_HORIZON = "fixed horizon: one look, when the planned number of units is reached"
ANY_TIME = "sequential: a look at most every {} {}, every interval valid at all looks together"
PLANNED_LOOKS = "group sequential: {} looks, {} spending"
_WORDS = tuple(words.split(":")[0] + ":" for words in (FIXED_HORIZON, ANY_TIME, PLANNED_LOOKS))
LOOKS = 5
"""Planned looks of a group sequential test; more of them gain little (Jennison & Turnbull 2000, § 2.7)."""
_LEAST_BETWEEN, _ABOUT = 20, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalysisPlan:
    """The rules of one experiment.

    Args:
        baseline, candidate: versions.
        metrics: exactly one primary; names must differ.
        expected_share: the candidate's share of units, fraction in (0, 1]; a half where every unit meets both.
        planned_n: units in both arms together, the budget. One look is taken when they are reached, once; a sequential
            test is sharpest there, and ends there at the latest.
        alpha: two-sided error rate of every comparison, over all looks. Guardrails need none split off, as all must
            pass.
        srm_alpha: error rate of the sample-ratio check.
        min_units: an arm with fewer analysed units decides nothing.
        max_score_failures: share of answers of an arm whose scorer may raise before the test is void.
        design: `randomised` (units split between the arms), `paired` (every unit to both) or `switchback` (blocks of
            time in turn; a block is a unit) or `bandit` (units drawn with shares that follow the outcomes).
        blocks: of a switchback: the arm of each block, in order.
        evaluation: when results are read, and by what: `fixed` (the default) once, at the end; `sequential` at any
            time, by methods that hold at all looks together; `group_sequential` at a few planned looks.
        look_every: of `sequential`: requests between two looks, of the paired design whole pairs; a fiftieth of what is
            planned by default, and 20 at least.
        look_count: of `group_sequential`: how many looks, evenly spread over `planned_n`; 5 by default.
        spending: of `group_sequential`: `obrien-fleming` (default), `pocock` or `power`.
        looks: the same in words; follows from the others.
        part_of: of one comparison of several candidates: the digest of the plan that holds them all.

    Raises:
        InvalidInput: a field is outside its range, or the metrics do not add up.
    """

    baseline: str
    candidate: str
    metrics: tuple[Metric, ...]
    expected_share: float
    planned_n: int
    alpha: float = 0.05
    srm_alpha: float = 0.001
    min_units: int = 20
    max_score_failures: float = 0.01
    design: str = RANDOMISED
    blocks: tuple[str, ...] = ()
    evaluation: str = FIXED
    look_every: int | None = None
    look_count: int | None = None
    spending: str | None = None
    looks: str = ""
    part_of: str = ""

    def __post_init__(self) -> None:
        checks.name("plan.baseline", self.baseline)
        checks.name("plan.candidate", self.candidate)
        if self.candidate == self.baseline:
            raise InvalidInput("plan.candidate", self.candidate, "another version than the baseline")
        object.__setattr__(self, "metrics", _metrics(self.metrics))
        # Set as floats, so that 1 and 1.0 are one plan with one digest.
        for name, high in (("expected_share", 1.0), ("alpha", 0.5), ("srm_alpha", 0.5)):
            value = checks.number(f"plan.{name}", getattr(self, name), low=0.0, high=high, above=True)
            object.__setattr__(self, name, value)
        object.__setattr__(self, "max_score_failures", checks.share("plan.max_score_failures", self.max_score_failures))
        checks.integer("plan.planned_n", self.planned_n, low=1)
        checks.integer("plan.min_units", self.min_units, low=2)
        checks.one_of("plan.design", self.design, (RANDOMISED, PAIRED, SWITCHBACK, BANDIT))
        object.__setattr__(self, "blocks", _blocks(self.design, self.blocks))
        self._check_looks()

    def _check_looks(self) -> None:
        checks.one_of("plan.evaluation", self.evaluation, EVALUATIONS)
        if self.evaluation != FIXED and self.design not in (RANDOMISED, PAIRED):
            raise InvalidInput("plan.evaluation", self.evaluation, f"{FIXED}, as the design is {self.design}")
        if self.evaluation != FIXED and self.expected_share == 1.0:
            raise InvalidInput("plan.expected_share", self.expected_share, "below 1: both arms need units")
        belongs = {"look_every": SEQUENTIAL, "look_count": GROUP_SEQUENTIAL, "spending": GROUP_SEQUENTIAL}
        for name, evaluation in belongs.items():
            if self.evaluation != evaluation and getattr(self, name) is not None:
                raise InvalidInput(f"plan.{name}", getattr(self, name), f"none, as evaluation is {self.evaluation}")
        words = FIXED_HORIZON
        if self.evaluation == SEQUENTIAL:
            every = max(_LEAST_BETWEEN, math.ceil(self.planned_n / self.meets / _ABOUT))
            every = checks.integer("plan.look_every", every if self.look_every is None else self.look_every, low=1)
            object.__setattr__(self, "look_every", every)
            words = ANY_TIME.format(every, "pairs" if self.design == PAIRED else "requests")
        elif self.evaluation == GROUP_SEQUENTIAL:
            number = LOOKS if self.look_count is None else self.look_count
            object.__setattr__(self, "look_count", checks.integer("plan.look_count", number, low=2, high=100))
            object.__setattr__(self, "spending", OBRIEN_FLEMING if self.spending is None else self.spending)
            checks.one_of("plan.spending", self.spending, SPENDING)
            words = PLANNED_LOOKS.format(number, self.spending)
        if self.looks and not self.looks.startswith(
            _WORDS
        ):  # those of another evaluation were copied along with the plan
            checks.one_of("plan.looks", self.looks, (words,))
        object.__setattr__(self, "looks", words)

    @property
    def meets(self) -> int:
        """How many versions a unit meets, and counts for: both in the paired design."""
        return 2 if self.design == PAIRED else 1

    @property
    def committed(self) -> str:
        """Digest of what was stored before the first exposure."""
        return self.part_of or self.digest()

    @property
    def primary(self) -> Metric:
        """The metric that decides."""
        return next(metric for metric in self.metrics if metric.role == Role.PRIMARY)

    @property
    def guardrails(self) -> tuple[Metric, ...]:
        """The metrics that may veto."""
        return tuple(metric for metric in self.metrics if metric.role == Role.GUARDRAIL)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `of` reads them back."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        plain |= {"metrics": [metric_to_dict(metric) for metric in self.metrics], "blocks": list(self.blocks)}
        # Plans of other designs and evaluations keep the digests they always had.
        unset = [name for name in ("look_every", "look_count", "spending") if plain[name] is None]
        unset += ["evaluation"] if self.evaluation == FIXED else []
        unset += [name for name in ("blocks", "part_of") if not plain[name]]
        return {name: value for name, value in plain.items() if name not in unset}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> AnalysisPlan:
        """A plan from its dictionary.

        Raises:
            InvalidInput: it is no dictionary, a required field is missing, one is unknown, or its value is not allowed.
        """
        if not isinstance(value, Mapping):
            raise InvalidInput("plan", value, "a dictionary of a plan")
        checks.known_fields("plan", value, cls.__dataclass_fields__)
        for required in ("baseline", "candidate", "metrics", "expected_share", "planned_n"):
            if required not in value:
                raise InvalidInput(f"plan.{required}", None, "a value; it is required")
        return cls(**value)

    def digest(self) -> str:
        """SHA-256 over the plan's canonical JSON: the same plan has the same digest everywhere."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _metrics(given: object) -> tuple[Metric, ...]:
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise InvalidInput("metrics", given, "a list of metrics")
    metrics = tuple(metric_of(metric) for metric in given)
    names = [metric.name for metric in metrics]
    primaries = [metric.name for metric in metrics if metric.role == Role.PRIMARY]
    if len(primaries) != 1:
        raise InvalidInput("metrics", primaries or names, "exactly one metric with role='primary'")
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput("metrics", name, "metrics with different names")
    return metrics


def _blocks(design: str, given: Iterable[str]) -> tuple[str, ...]:
    blocks = tuple(given)
    if design != SWITCHBACK:
        if blocks:
            raise InvalidInput("plan.blocks", blocks, f"none, as the design is {design}")
        return blocks
    pairs = zip(blocks[::2], blocks[1::2], strict=False)
    if len(blocks) < 4 or len(blocks) % 2 or any({*pair} != {"baseline", "candidate"} for pair in pairs):
        raise InvalidInput("plan.blocks", blocks, "pairs of one baseline and one candidate block; two pairs or more")
    return blocks
