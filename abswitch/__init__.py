"""abswitch: switch live traffic between language-model versions in a notebook, and learn which one is better.

Importing this package is cheap; what is heavy (vLLM, PyTorch, MLflow, pandas) is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abswitch.domain import (
        Completion,
        ModelConfig,
        ModelVersion,
        Sampling,
        SwitchingStrategyType,
        TokenChunk,
    )
    from abswitch.engine import SwitchingEngine
    from abswitch.errors import AbswitchError, InvalidInput
    from abswitch.rollout.judging import Guardrail, Judgement, Ruling, StepEvidence
    from abswitch.rollout.limits import AlertThresholds, Limit
    from abswitch.rollout.strategies import (
        ABTestStrategy,
        CanaryStrategy,
        GradualStrategy,
        ImmediateStrategy,
        ShadowStrategy,
    )
    from abswitch.scoring import ExactMatch, Function, Judge, Matches, Sample
    from abswitch.serving.alerts import Alert
    from abswitch.serving.handle import SwitchHandle
    from abswitch.serving.report import HealthReport
    from abswitch.serving.webhook import WebhookSink
    from abswitch.settings import ModelSwitchingConfig
    from abswitch.store.reader import open_readonly as read

__version__ = "0.1.0"

_HOME = {
    "ABTestStrategy": "abswitch.rollout.strategies",
    "AbswitchError": "abswitch.errors",
    "Alert": "abswitch.serving.alerts",
    "AlertThresholds": "abswitch.rollout.limits",
    "CanaryStrategy": "abswitch.rollout.strategies",
    "Completion": "abswitch.domain",
    "ExactMatch": "abswitch.scoring",
    "Function": "abswitch.scoring",
    "GradualStrategy": "abswitch.rollout.strategies",
    "Guardrail": "abswitch.rollout.judging",
    "HealthReport": "abswitch.serving.report",
    "ImmediateStrategy": "abswitch.rollout.strategies",
    "InvalidInput": "abswitch.errors",
    "Judge": "abswitch.scoring",
    "Judgement": "abswitch.rollout.judging",
    "Limit": "abswitch.rollout.limits",
    "Matches": "abswitch.scoring",
    "ModelConfig": "abswitch.domain",
    "ModelSwitchingConfig": "abswitch.settings",
    "ModelVersion": "abswitch.domain",
    "Ruling": "abswitch.rollout.judging",
    "Sample": "abswitch.scoring",
    "Sampling": "abswitch.domain",
    "ShadowStrategy": "abswitch.rollout.strategies",
    "StepEvidence": "abswitch.rollout.judging",
    "SwitchHandle": "abswitch.serving.handle",
    "SwitchingEngine": "abswitch.engine",
    "SwitchingStrategyType": "abswitch.domain",
    "TokenChunk": "abswitch.domain",
    "WebhookSink": "abswitch.serving.webhook",
    "read": "abswitch.store.reader",
}

__all__ = [
    "ABTestStrategy",
    "AbswitchError",
    "Alert",
    "AlertThresholds",
    "CanaryStrategy",
    "Completion",
    "ExactMatch",
    "Function",
    "GradualStrategy",
    "Guardrail",
    "HealthReport",
    "ImmediateStrategy",
    "InvalidInput",
    "Judge",
    "Judgement",
    "Limit",
    "Matches",
    "ModelConfig",
    "ModelSwitchingConfig",
    "ModelVersion",
    "Ruling",
    "Sample",
    "Sampling",
    "ShadowStrategy",
    "StepEvidence",
    "SwitchHandle",
    "SwitchingEngine",
    "SwitchingStrategyType",
    "TokenChunk",
    "WebhookSink",
    "read",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'abswitch' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
