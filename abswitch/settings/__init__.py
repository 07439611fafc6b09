"""Settings: what the engine does where nothing else was said, from code, the environment, a file, or by default."""

from abswitch.rollout.limits import AlertThresholds, Limit
from abswitch.settings.config import ModelSwitchingConfig

__all__ = ["AlertThresholds", "Limit", "ModelSwitchingConfig"]
