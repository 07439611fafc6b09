"""What tests and first steps need: tiny models with known quality, contract suites, and a checker of histories."""

from abswitch.testing.contract import check_instance
from abswitch.testing.history import HistoryReport, check_history
from abswitch.testing.models import TinyModels, tiny_models
from abswitch.testing.tasks import Problem, Task
from abswitch.testing.witness import Witness

__all__ = [
    "HistoryReport",
    "Problem",
    "Task",
    "TinyModels",
    "Witness",
    "check_history",
    "check_instance",
    "tiny_models",
]
