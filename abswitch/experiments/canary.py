"""`run_canary`: traffic at a candidate that has to earn each step, until it is promoted, sent back, or time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from abswitch.domain import Sampling, SwitchingStrategyType
from abswitch.engine import SwitchingEngine
from abswitch.errors import SwitchRefused
from abswitch.experiments.ab_test import unfinished
from abswitch.experiments.arrivals import Arrivals, ClosedLoop
from abswitch.experiments.asking import Asking, Progress, RequestBudget, RequestCounts
from abswitch.experiments.prompts import questions_of
from abswitch.rollout.strategies import CanaryStrategy
from abswitch.serving.handle import SwitchHandle
from abswitch.serving.status import OperationStatus

_MOVES = """
SELECT event, phase_from, phase_to, step, share, reason, at_s FROM transitions
WHERE operation_id = ? ORDER BY sequence
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryMove:
    """One move of the canary: what happened, where it led, and why.

    Attributes:
        share: of units on the candidate afterwards, fraction 0–1.
        at_s: seconds since the epoch.
    """

    event: str
    phase_from: str
    phase_to: str
    stage: int
    share: float
    reason: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryResult:
    """A canary that ended, or whose budget did.

    Attributes:
        decision: `promote`, `roll back`, or `hold` when the budget ended before the canary did.
        reason: the judge's, or what else ended it.
        elapsed_s: loading the candidate included.
    """

    experiment: str
    handle: SwitchHandle
    baseline: str
    candidate: str
    decision: str
    reason: str
    requests: RequestCounts
    moves: tuple[CanaryMove, ...]
    started_at_s: float
    elapsed_s: float

    @property
    def operation_id(self) -> str:
        return self.handle.operation_id

    @property
    def headline(self) -> str:
        """One line for people."""
        return {
            "promote": f"PROMOTED {self.candidate}: it earned every step.",
            "roll back": f"ROLLED BACK to {self.baseline}: {self.reason}.",
            "hold": f"HOLD: {self.candidate} has not earned all its steps yet.",
        }[self.decision]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why, the decisive one first, then every move."""
        moves = (f"Stage {m.stage}, {m.share:.0%}: {m.phase_from} → {m.phase_to} ({m.reason})." for m in self.moves)
        return (self.reason, *moves)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "decision": self.decision,
            "headline": self.headline,
            "reasons": list(self.reasons),
            "moves": [asdict(move) for move in self.moves],
        }


async def run_canary(
    engine: SwitchingEngine,
    candidate: str,
    prompts: Iterable[Any],
    *,
    strategy: CanaryStrategy | None = None,
    budget: RequestBudget,
    arrivals: Arrivals | None = None,
    model_id: str | None = None,
    experiment: str | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    **sampling: Any,
) -> CanaryResult:
    """Run a canary under load, its prompts again and again.

    Args:
        engine: its scorers give the scores that guardrails name.
        candidate: a registered version.
        prompts: see `questions_of`; each round's are units of their own unless they name one.
        strategy: the steps and the guardrails; `CanaryStrategy`'s defaults without it.
        budget: what the run may use up.
        arrivals: by default 16 users, one request after the other.
        experiment: name that the assignment depends on.
        resume: go on with the canary of this candidate that an earlier process left in the same store.

    Returns:
        The result. With `hold` the canary is still under way: `result.handle.keep()` ends it.

    Raises:
        InvalidInput: a malformed argument, or no prompts; nothing was started.
        SwitchFailed: the candidate did not come to serve; the active version still does.
        SwitchRefused, OperationInProgress: see `SwitchingEngine.start_switch`.
    """
    questions = questions_of(prompts)
    Sampling().merged(sampling)
    model = engine.registry.resolve_model(model_id)
    asking = Asking(
        engine,
        questions,
        model,
        sampling,
        on_progress,
        arrivals=arrivals or ClosedLoop(),
        budget=budget,
        endless=True,
    )
    asking.tell(f"loading {candidate}")
    handle = unfinished(engine, model, candidate, SwitchingStrategyType.CANARY) if resume else None
    if handle is None:
        if engine.registry.active_version(model) is None:
            raise SwitchRefused(f"model {model!r} has no active version to compare with; use `await engine.deploy(…)`")
        handle = await engine.start_switch(
            candidate, SwitchingStrategyType.CANARY, strategy or CanaryStrategy(), model_id=model, experiment=experiment
        )
    elif handle.status.detached:
        await handle.resume()
    if not handle.status.finished:
        await handle.serving()
    counts = await asking.ask_all(handle.operation_id, lambda: handle.status.finished or _decided(handle.status))
    if _decided(handle.status):
        await handle.done()  # it drains
    result = _result(engine, handle, counts, experiment, asking.started_at_s)
    asking.tell(result.decision)
    return result


def _decided(status: OperationStatus) -> bool:
    return status.phase in ("draining", "rolling back")


def _result(
    engine: SwitchingEngine, handle: SwitchHandle, counts: RequestCounts, experiment: str | None, began_at_s: float
) -> CanaryResult:
    status = handle.status
    moves = tuple(
        CanaryMove(event=event, phase_from=before, phase_to=after, stage=stage, share=share, reason=reason, at_s=at_s)
        for event, before, after, stage, share, reason, at_s in engine.store.rows(_MOVES, (status.operation_id,))
    )
    started_at_s = min([began_at_s, *(move.at_s for move in moves)])
    reason = status.reason
    if not status.finished:
        reason = f"the budget ended at stage {status.stage + 1} of {status.stages} ({status.share:.0%}): {reason}"
    return CanaryResult(
        experiment=experiment or handle.operation_id,
        handle=handle,
        baseline=status.stable or "",
        candidate=status.candidate,
        decision="promote" if status.promoted else "roll back" if status.finished else "hold",
        reason=reason,
        requests=counts,
        moves=moves,
        started_at_s=started_at_s,
        elapsed_s=time.time() - started_at_s,
    )
