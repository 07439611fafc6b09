"""The comparison of arms in MLflow's interface as it is meant to be seen: chosen metrics first, then the curves.

MLflow keeps named views of an experiment as tags of it and opens one by its id in the address. What such a tag holds is
the state of its page; fields that a version of MLflow does not know are ignored by it.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from abswitch.store.tracking import LOOK_PREFIX, WINDOW_PREFIX

VIEW = "abswitch"
"""Id of the view; MLflow lists it by `_TITLE`."""
TAG = f"mlflow.sharedViewState.{VIEW}"
_TITLE = "Arms side by side (abswitch)"
_LONGEST_TAG = 20_000
_CURVE = ("difference", "low", "high")
_COLUMNS = ("tags.`abswitch.arm`", "tags.`abswitch.version`", "tags.`abswitch.decision`")
_SECTIONS = {"totals": "Totals", "looks": "What each look at the evidence found", "windows": "By window of time"}


def saved_view(body: Mapping[str, Any]) -> str | None:
    """The experiment's tag that makes the view; None where it would be longer than MLflow takes.

    Args:
        body: a `TrackedExperiment` as a dictionary.
    """
    arm = body["arms"][0]
    first = body.get("first_metrics") or ()
    totals = _ordered(arm["metrics"], first)
    windows = [WINDOW_PREFIX + key for key in _ordered(arm["windows"][0] if arm["windows"] else (), first)]
    curves = [
        LOOK_PREFIX + key for key in _ordered({name for look in arm.get("looks") or () for name in _bases(look)}, first)
    ]
    cards = [_bar(key) for key in totals] + [_line("windows", key) for key in windows]
    for curve in curves:
        cards += _curve_cards(curve)
    state = {
        "selectedColumns": [*_COLUMNS, *(f"metrics.`{key}`" for key in totals)],
        "orderByKey": "tags.`abswitch.arm`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "searchFilter": "",
        "compareRunCharts": cards,
        "compareRunSections": [
            _section(key, title) for key, title in _SECTIONS.items() if any(_is_in(key, card) for card in cards)
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": True,
        "groupBy": None,
        "runsHiddenMode": "FIRST_20_RUNS",
    }
    made_ms = round(body["started_at_s"] * 1000)
    tag = json.dumps({"name": _TITLE, "createdAt": made_ms, "updatedAt": made_ms, "state": _deflated(state)})
    return tag if len(tag) <= _LONGEST_TAG else None


def _ordered(keys: Iterable[str], first: Sequence[str]) -> list[str]:
    """The chosen ones in their order, then the others by name."""
    there = set(keys)
    chosen = [key for key in first if key in there]
    return chosen + sorted(there - set(chosen))


def _bases(look: Mapping[str, Any]) -> set[str]:
    return {key.removesuffix(f"/{_CURVE[0]}") for key in look if key.endswith(f"/{_CURVE[0]}")}


def _bar(key: str) -> dict[str, Any]:
    return {"type": "BAR", "metricKey": key, "runsCountToCompare": 20, **_card("totals", key)}


def _line(section: str, key: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricKey": key,
        "selectedMetricKeys": [key],
        "xAxisKey": "step",
        "lineSmoothness": 0,
        "runsCountToCompare": 20,
        **_card(section, key),
    }


def _curve_cards(base: str) -> list[dict[str, Any]]:
    """One chart of the difference and its interval; without the other two MLflow would add a chart for each."""
    keys = [f"{base}/{part}" for part in _CURVE]
    shown = _line("looks", keys[0]) | {
        "selectedMetricKeys": keys,
        "displayName": f"{base}: difference and its interval",
    }
    return [shown, *(_line("looks", key) | {"deleted": True} for key in keys[1:])]


def _card(section: str, key: str) -> dict[str, Any]:
    return {"uuid": _uuid(f"card/{key}"), "metricSectionId": _uuid(section), "deleted": False, "isGenerated": False}


def _is_in(section: str, card: Mapping[str, Any]) -> bool:
    return bool(card["metricSectionId"] == _uuid(section))


def _section(key: str, title: str) -> dict[str, Any]:
    return {
        "uuid": _uuid(key),
        "name": title,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": 3,
        "cardHeight": 280,
    }


def _uuid(name: str) -> str:
    return blake2b(name.encode(), digest_size=8).hexdigest()


def _deflated(state: Mapping[str, Any]) -> str:
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    return "deflate;" + b64encode(packed).decode()
