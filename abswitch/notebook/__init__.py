"""What a notebook shows: progress, verdicts, figures, controls. Everything also works, as text, outside of one."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abswitch.notebook.alerts import AlertsView
    from abswitch.notebook.display import Card, card, show
    from abswitch.notebook.live import ProgressView, StageView
    from abswitch.notebook.panel import SwitchPanel
    from abswitch.notebook.parameters import check_parameters, project_folder, store_uri
    from abswitch.notebook.plots import estimates_chart, latency_chart, traffic_chart

# Resolved at first use: matplotlib and ipywidgets are loaded only by who draws or clicks.
_HOME = {
    "AlertsView": "alerts",
    "Card": "display",
    "ProgressView": "live",
    "StageView": "live",
    "SwitchPanel": "panel",
    "card": "display",
    "check_parameters": "parameters",
    "estimates_chart": "plots",
    "latency_chart": "plots",
    "project_folder": "parameters",
    "show": "display",
    "store_uri": "parameters",
    "traffic_chart": "plots",
}

__all__ = [
    "AlertsView",
    "Card",
    "ProgressView",
    "StageView",
    "SwitchPanel",
    "card",
    "check_parameters",
    "estimates_chart",
    "latency_chart",
    "project_folder",
    "show",
    "store_uri",
    "traffic_chart",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'abswitch.notebook' has no attribute {name!r}")
    return getattr(import_module(f"abswitch.notebook.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
