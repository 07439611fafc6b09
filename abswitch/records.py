"""Rows of evidence that are not part of a request or a switch; column order is that of the table each belongs to.

Instants are seconds since the Unix epoch, durations seconds, shares fractions 0–1. JSON columns take plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class AssignmentRecord(NamedTuple):
    """A unit met an arm of an operation; table `assignments`. Written at admission, however the request ends.

    Attributes:
        share: of the arm when the unit met it; equally the chance that the unit had to get it.
        request_id: the request that it came with.
    """

    operation_id: str
    model_id: str
    unit_id: str
    arm: str
    version: str
    share: float
    step: int
    route_epoch: int
    request_id: str
    assigned_at_s: float


class HealthSample(NamedTuple):
    """One look at one version's instance, with the traffic of a sliding window; table `health_samples`.

    Attributes:
        alive: its process or server answers.
        residency: `resident`, `sleeping`, `discarded`, `cold`.
        in_flight: generations under way; `waiting`: requests queued for the model.
        last_token_age_s: since any generation made progress; None before the first token.
        window_s: what the figures below cover; those without data are None, never 0.
        requests, errors: ended within the window.
        error: why it is not alive.
    """

    at_s: float
    model_id: str
    version: str
    alive: bool
    residency: str
    in_flight: int
    waiting: int
    last_token_age_s: float | None
    memory_bytes: int
    window_s: float
    requests: int
    errors: int
    requests_per_s: float | None
    output_tokens_per_s: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    latency_p99_s: float | None
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    error: str | None


class AlertRecord(NamedTuple):
    """One change of an alert's state; table `alerts`. The latest row of an `alert_id` is how it stands.

    Attributes:
        alert_id: the same from firing to resolution.
        state: `firing`, `acknowledged`, `resolved`.
        severity: `warning`, `critical`.
        metric: what was out of bounds, e.g. `error_rate`, `latency_p95_s`, `hung`.
        value, threshold: in the metric's unit; None where the alert is no number.
    """

    alert_id: str
    state: str
    severity: str
    metric: str
    model_id: str
    version: str | None
    operation_id: str | None
    value: float | None
    threshold: float | None
    message: str
    at_s: float


class LookRecord(NamedTuple):
    """One metric at one look of an experiment: a point of its sequential curve; table `looks`.

    Attributes:
        look: 1, 2, 3, …, as in the table `verdicts`.
        role: `primary`, `guardrail`, `secondary`, `validity`.
        estimate, low, high: candidate − baseline with its interval, in the metric's unit; None: not attainable.
        alpha_spent: of the metric's error budget so far, where the method spends one.
        decision: what this metric said, e.g. `better`, `worse`, `non-inferior`, `undecided`.
    """

    operation_id: str
    look: int
    metric: str
    role: str
    method: str
    arm: str
    n_baseline: int
    n_candidate: int
    estimate: float | None
    low: float | None
    high: float | None
    p_value: float | None
    e_value: float | None
    alpha_spent: float | None
    decision: str
    at_s: float


class RunRecord(NamedTuple):
    """One execution of an experiment's specification; table `runs`, one row per `run_id`, replaced as it goes on.

    Attributes:
        status: `running`, `finished`, `failed`, `interrupted`.
        exit_code: of the command, once it ended.
        spec: the specification as it ran, with every parameter filled in; `spec_digest` is its hash.
        parameters: what this run set beside the specification.
        environment: versions of packages and the platform.
        operation_id: the operation that it brought about, once there is one.
        folder: where its report lies.
    """

    run_id: str
    experiment: str
    status: str
    exit_code: int | None
    operation_id: str | None
    spec_digest: str
    spec: Mapping[str, Any]
    parameters: Mapping[str, Any]
    environment: Mapping[str, Any]
    folder: str | None
    started_at_s: float
    ended_at_s: float | None


class ArtifactRecord(NamedTuple):
    """One file that came out of a run or an operation; table `artifacts`.

    Attributes:
        kind: `report`, `notebook`, `figure`, `summary`, `verdict`, `log` …
        uri: a path or an address.
        sha256: of its content, in hexadecimal.
    """

    artifact_id: str
    run_id: str | None
    operation_id: str | None
    kind: str
    name: str
    uri: str
    media_type: str
    size_bytes: int | None
    sha256: str | None
    created_at_s: float


class Action(StrEnum):
    """What an entry of a model's history tells."""

    REGISTERED = "registered"
    DEREGISTERED = "deregistered"
    REQUESTED = "requested"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    WITHDRAWN = "withdrawn"
    ENDED = "ended"
    ALIAS_SET = "alias set"
    ALIAS_REMOVED = "alias removed"
    TAGGED = "tagged"
    UNTAGGED = "untagged"
    EXPORTED = "exported"


class HistoryEntry(NamedTuple):
    """One entry of a model's history; table `registry_history`.

    Attributes:
        sequence: grows within the model.
        action: see `Action`. `requested` and `ended` enclose a switch; `promoted`, `rolled back` and `withdrawn` say
            which version is active from then on.
        version: the version it is about; None where none is (`withdrawn`, `exported`).
        previous: what the alias pointed to before, or the version that was active before.
        alias: that the entry moved: `champion` with the active version, `challenger` with a switch's candidate.
        actor: who did it: a name the caller gave (`user` by default), `switcher`, `registry`, `recovery`.
        detail: what else there is to tell, e.g. a switch's strategy and metadata, or a tag's key and value.
        at_s: when, by the wall clock.
    """

    model_id: str
    sequence: int
    action: str
    version: str | None
    previous: str | None
    alias: str | None
    actor: str
    reason: str
    operation_id: str | None
    detail: Mapping[str, Any] = _NOTHING
    at_s: float = 0.0

    def __str__(self) -> str:
        about = " ".join(filter(None, (self.version, self.alias and f"({self.alias})")))
        why = f": {self.reason}" if self.reason else ""
        return f"{self.sequence} {self.action} {about} by {self.actor}{why}"
