"""What the engine shows of itself: frozen snapshots for people, notebooks and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from abswitch.domain import Residency
from abswitch.errors import AbswitchError, UnknownModel
from abswitch.rollout.operation import Operation
from abswitch.serving.preflight import SwitchPlan
from abswitch.serving.references import known
from abswitch.serving.router import RouteSnapshot
from abswitch.serving.tables import named, paragraph, table


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationStatus:
    """One switch as it stands.

    Attributes:
        candidate: the switch's target; `candidates` has every version that is compared with the stable one.
        share: the candidates' share of units, fraction 0–1.
        shares: the same by version, the stable one first where there is one; they sum to 1 unless nothing serves yet.
        ramp: the candidates' share in each stage of the strategy.
        mirror: fraction of requests copied to the candidate, unseen by users.
        detached: taken over after a crash: the shares are not in force until it is resumed.
        age_s: seconds since it was accepted.
        in_phase_s: seconds since the last move; of a finished operation, since its end.
    """

    operation_id: str
    model_id: str
    strategy: str
    stable: str | None
    candidate: str
    candidates: tuple[str, ...]
    phase: str
    finished: bool
    stage: int
    stages: int
    share: float
    shares: tuple[tuple[str, float], ...]
    ramp: tuple[float, ...]
    mirror: float
    promoted: bool
    winner: str | None
    detached: bool
    reason: str
    age_s: float
    in_phase_s: float

    @classmethod
    def of(cls, operation: Operation, now_s: float) -> OperationStatus:
        """The status of an operation at `now_s` (monotonic seconds)."""
        return cls(
            operation_id=operation.operation_id,
            model_id=operation.model_id,
            strategy=operation.strategy.type.value,
            stable=operation.stable,
            candidate=operation.candidate,
            candidates=operation.candidates,
            phase=operation.phase.value,
            finished=operation.phase.is_final,
            stage=operation.stage,
            stages=len(operation.strategy.stages),
            share=operation.share,
            shares=operation.shares,
            ramp=tuple(stage.share for stage in operation.strategy.stages),
            mirror=operation.mirror,
            promoted=operation.promoted,
            winner=operation.winner,
            detached=operation.detached,
            reason=operation.reason,
            age_s=now_s - operation.created_s,
            in_phase_s=now_s - operation.phase_since_s,
        )

    @property
    def way(self) -> str:
        """From which version to which."""
        return f"{self.stable or 'nothing'} → {', '.join(self.candidates)}"

    def __str__(self) -> str:
        return f"{self.operation_id} {self.strategy} {self.way}: {self.phase} at {self.share:.0%} ({self.reason})"

    def _repr_html_(self) -> str:
        lines = [
            (self.operation_id, f"{self.model_id}, {self.strategy} {self.way}"),
            (self.phase, self.reason),
            ("traffic", _split(dict(self.shares))),
        ]
        return named([*lines, ("copies", f"{self.mirror:.0%} of requests")] if self.mirror else lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchValidation:
    """What `validate_switch_request` found; true when the switch could begin.

    Attributes:
        reason: why it could not; None when it could.
        plan: what it would take; None when the request makes no sense.
        error: what `start_switch` would raise.
    """

    valid: bool
    reason: str | None
    plan: SwitchPlan | None
    error: AbswitchError | None = None

    def __bool__(self) -> bool:
        return self.valid

    def __str__(self) -> str:
        return "\n".join(f"{name}: {words}" if name else words for name, words in self._lines())

    def _repr_html_(self) -> str:
        return named(self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        if not self.valid:
            return [("refused", self.reason or "")]
        return [("valid", "the switch could begin now"), *([] if self.plan is None else self.plan.lines())]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One model: which version is active, how traffic is split now, and what is under way.

    Attributes:
        shares: version → fraction of units 0–1; empty when nothing serves.
        loaded: versions that are able to serve now, least recently used first.
        waiting: requests that wait because nothing can serve them right now; `engine.waiting()` has each of them.
        tiers: version → `resident`, `sleeping` or `discarded`, of every version that is held; all others are cold.
    """

    model_id: str
    active_version: str | None
    shares: Mapping[str, float]
    loaded: tuple[str, ...]
    in_flight: int
    waiting: int
    operation: OperationStatus | None
    tiers: Mapping[str, Residency] = field(default_factory=dict)

    def __str__(self) -> str:
        told = [f"{self.model_id}: {_split(self.shares)}", f"{self.in_flight} in flight, {self.waiting} waiting"]
        if self.tiers:
            told.append(_held(self.tiers))
        return "; ".join([*told, str(self.operation)] if self.operation else told)

    def _repr_html_(self) -> str:
        return _models_table((self,))


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchingStatus:
    """Every model of the engine, and what became of its records.

    Attributes:
        rows_waiting: records on their way to the store; many when it cannot be written.
        rows_missing: records of this process that will never be in the store; verdicts over them are `invalid`.
        answers_unscored: answers that slow scorers did not come to, as too many waited; their rows in `scores` say so.
        closed: the engine was shut down: nothing serves any more.
    """

    models: tuple[ModelStatus, ...]
    rows_waiting: int = 0
    rows_missing: int = 0
    answers_unscored: int = 0
    closed: bool = False

    def __getitem__(self, model_id: str) -> ModelStatus:
        """One model's status.

        Raises:
            UnknownModel: it is not registered; lists those that are.
        """
        found = next((model for model in self.models if model.model_id == model_id), None)
        if found is None:
            allowed = known((model.model_id for model in self.models), str(model_id))
            raise UnknownModel("model_id", model_id, allowed)
        return found

    def __str__(self) -> str:
        told = "\n".join(map(str, self.models)) or "no model is registered"
        return "\n".join((told, *self._warnings()))

    def _repr_html_(self) -> str:
        return _models_table(self.models) + "".join(map(paragraph, self._warnings()))

    def _warnings(self) -> list[str]:
        counts = {"records were dropped": self.rows_missing, "answers were not scored": self.answers_unscored}
        told = [f"{count} {words}" for words, count in counts.items() if count]
        return [*told, "the engine was shut down"] if self.closed else told

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def _models_table(models: tuple[ModelStatus, ...]) -> str:
    if not models:
        return paragraph("no model is registered")
    head = ("model", "active", "traffic now", "in memory", "in flight", "waiting", "latest switch")
    return table(head, map(_cells, models))


def _cells(model: ModelStatus) -> tuple[str, ...]:
    operation = model.operation
    switch = "none yet"
    if operation is not None:
        switch = f"{operation.strategy} {operation.way}: {operation.phase} ({operation.reason})"
    return (
        model.model_id,
        model.active_version or "none",
        _split(model.shares),
        _held(model.tiers) or "nothing",
        f"{model.in_flight:,}",
        f"{model.waiting:,}",
        switch,
    )


def _split(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{version} {share:.0%}" for version, share in shares.items()) or "nothing serves"


def _held(tiers: Mapping[str, Residency]) -> str:
    return ", ".join(f"{version} {tier}" for version, tier in tiers.items())


def shares_of(snapshot: RouteSnapshot | None) -> dict[str, float]:
    """Version → share, from a routing snapshot."""
    return {} if snapshot is None else {arm.version: arm.share for arm in snapshot.arms}
