"""What the example specs call: tiny models, and problems for them. Importing this costs nothing."""

from __future__ import annotations

from abswitch.testing.models import tiny_models
from abswitch.testing.tasks import task_named


def tiny_model(task: str = "addition", which: str = "baseline") -> str:
    """The folder of a tiny model, trained first when it is not in the cache (half a minute).

    Args:
        which: `baseline`, `better`, `regressed`, or `adapter` (a LoRA adapter on the baseline).

    Raises:
        InvalidInput, TrainingFailed: as `tiny_models`.
    """
    from abswitch import checks

    checks.one_of("which", which, ("baseline", "better", "regressed", "adapter"))
    return str(getattr(tiny_models(task), which))


def problems(n: int, task: str = "addition", seed: int = 1) -> list[tuple[str, str]]:
    """Held-out problems with their answers; the same seed draws the same ones.

    Raises:
        InvalidInput: more than there are.
    """
    return [(problem.prompt, problem.answer) for problem in task_named(task).problems(n, seed=seed)]
