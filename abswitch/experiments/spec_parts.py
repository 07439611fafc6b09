"""The parts of an experiment's specification: frozen, strict (nothing is converted), unknown fields refused.

Shares of traffic are in percent, as in `strategy_config`; durations are seconds (`_s`) or minutes (`_minutes`).
The strings below fields are their descriptions in the JSON Schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from abswitch.domain import ModelConfig, Sampling
from abswitch.errors import InvalidInput
from abswitch.experiments.schedules.occurrences import check_cron, check_zone
from abswitch.rollout.judging import Guardrail
from abswitch.rollout.strategies import MOST_STAGES
from abswitch.stats.metrics import Metric, metric_of, metric_to_dict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, Field(min_length=1)]
Reference = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
Whole = Annotated[int, Field(ge=1)]
Above0 = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Percent = Annotated[float, Field(gt=0.0, le=100.0)]
FreeForm = dict[str, Any]
DECISIONS = ("ship", "keep", "equivalent", "inconclusive", "invalid", "promote", "hold", "roll back")


class Strict(BaseModel):
    """What every part of a spec is: frozen, no conversions, no unknown fields."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)


def _schema_of(cls: type, **added: Any) -> dict[str, Any]:
    schema = TypeAdapter(cls).json_schema()
    schema = _inlined(schema, schema.pop("$defs", {}))
    schema["properties"] = {name: {"const": value} for name, value in added.items()} | schema["properties"]
    schema["required"] = [*added, *schema.get("required", [])]
    schema["additionalProperties"] = False
    return {key: value for key, value in schema.items() if value != []}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """The same without references, which lead nowhere once this is a part of another schema."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        found = _inlined(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
        return {**found, "additionalProperties": False}
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def _metric_schema(cls: type[Metric]) -> dict[str, Any]:
    """A metric as a file may have it: one condition need not be a list, segments may be a column alone."""
    schema = _schema_of(cls, kind=cls.kind)
    fields = schema["properties"]
    fields["where"]["anyOf"] = [{"type": "array", "items": fields["where"].pop("items")}]
    fields["where"]["anyOf"].append(fields["where"]["anyOf"][0]["items"])
    del fields["where"]["type"]
    fields["segments"]["anyOf"].append({"type": "string"})
    return schema


MetricField = Annotated[
    Metric,
    PlainValidator(metric_of),
    PlainSerializer(metric_to_dict),
    WithJsonSchema({"anyOf": [_metric_schema(cls) for cls in get_args(Metric)]}),
]


def _checked_sampling(given: object) -> FreeForm:
    if not isinstance(given, Mapping):
        raise InvalidInput("sampling", given, "a mapping of sampling fields")
    Sampling().merged(given)
    return dict(given)


SamplingField = Annotated[
    FreeForm,
    PlainValidator(_checked_sampling),
    WithJsonSchema(_schema_of(Sampling)),
]
GuardrailField = Annotated[
    Guardrail,
    PlainValidator(lambda given: Guardrail.all_of("guardrails", (given,))[0]),
    PlainSerializer(lambda rail: {key: value for key, value in asdict(rail).items() if value is not None}),
    WithJsonSchema(_schema_of(Guardrail)),
]


class Call(Strict):
    """The result of a Python function, for what has to be made: prompts, or a model's folder."""

    function: Reference
    """`package.module:function`; importable from the project's folder."""
    arguments: FreeForm = {}


class VersionSpec(Strict):
    """One version, as `ModelConfig` takes it."""

    model: Text | Call
    """A Hugging Face folder (relative to the project), a hub id, a served model's name, or a function that makes it."""
    backend: Name = "vllm"
    revision: Text | None = None
    adapter: Text | Call | None = None
    engine_args: FreeForm = {}
    sampling: SamplingField = {}
    prompt_template: str | None = None
    trust_remote_code: bool = False
    metadata: FreeForm = {}

    def config(self, model_id: str, *, model: str | None, adapter: str | None) -> ModelConfig:
        """As it is registered, loaded from `model` and `adapter`.

        Raises:
            InvalidInput: names the field of `model_config`.
        """
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "metadata"}
        return ModelConfig.of({"model_id": model_id, **given, "model": model, "adapter": adapter})


class Fields(Strict):
    """How the columns of a prompts file are called there."""

    prompt: Text = "prompt"
    reference: Text | None = None
    """The right answer; a column `reference` is used where there is one, unless another is named."""
    unit_id: Text | None = None
    """What is randomised (a user, a session); a column `unit_id` is used where there is one, unless another is named.
    Each prompt is a unit of its own without it."""


class _Prompts(Strict):
    limit: Whole | None = None
    """Take so many at most."""
    shuffle: bool = False
    """Shuffle by the spec's `seed` before the limit is applied."""


class InlinePrompts(_Prompts):
    """Prompts written in the spec: strings, [prompt, reference] pairs, or mappings."""

    kind: Literal["inline"] = "inline"
    items: Annotated[tuple[Any, ...], Field(min_length=1)]


class FilePrompts(_Prompts):
    """Prompts from a JSONL, CSV or Parquet file, relative to the project's folder."""

    kind: Literal["jsonl", "csv", "parquet"]
    path: Text
    fields: Fields = Fields()


class DatasetPrompts(_Prompts):
    """Prompts from a Hugging Face dataset: a local folder, or an id on the hub."""

    kind: Literal["huggingface"]
    path: Text
    split: Text = "train"
    config: Text = "default"
    fields: Fields = Fields()


class GeneratedPrompts(_Prompts):
    """Prompts that a function returns."""

    kind: Literal["generator"]
    function: Reference
    arguments: FreeForm = {}


Prompts = Annotated[InlinePrompts | FilePrompts | DatasetPrompts | GeneratedPrompts, Field(discriminator="kind")]


def _check_looks(design: RandomisedDesign | PairedDesign, evaluation: str) -> None:
    """What says how looks are taken belongs to one way of taking them."""
    belongs = {"look_every": "sequential", "looks": "group_sequential", "spending": "group_sequential"}
    for name, needed in belongs.items():
        if getattr(design, name) is not None and evaluation != needed:
            raise ValueError(f"{name} belongs to evaluation {needed}; this is {evaluation}")


class RandomisedDesign(Strict):
    """Live traffic split by unit; a verdict of ship, keep, equivalent or inconclusive."""

    kind: Literal["randomised"] = "randomised"
    traffic_percentage: Percent = 50.0
    evaluation: Literal["sequential", "group_sequential", "fixed"] = "sequential"
    """When results are read: at any time, until the rules decide; at a few planned looks; or once, at the end."""
    look_every: Whole | None = None
    """Of `sequential`: requests between two looks; a fiftieth of the units without it, and 20 at least."""
    looks: Annotated[int, Field(ge=2, le=100)] | None = None
    """Of `group_sequential`: how many; 5 without it."""
    spending: Literal["obrien-fleming", "pocock", "power"] | None = None
    """Of `group_sequential`: how the error rate is spent over the looks; `obrien-fleming` without it."""

    @model_validator(mode="after")
    def _of_its_evaluation(self) -> RandomisedDesign:
        _check_looks(self, self.evaluation)
        return self


class PairedDesign(Strict):
    """Every prompt to both versions."""

    kind: Literal["paired"]
    together: bool | None = None
    """Both in memory at once; by default where they fit. Otherwise one answers every prompt, then the other."""
    evaluation: Literal["sequential", "group_sequential", "fixed"] | None = None
    """As of the randomised design, by whole pairs. Without it sequential where both are held together, else fixed."""
    look_every: Whole | None = None
    """Of `sequential`: pairs between two looks; a fiftieth of the units without it, and 20 at least."""
    looks: Annotated[int, Field(ge=2, le=100)] | None = None
    """Of `group_sequential`: how many; 5 without it."""
    spending: Literal["obrien-fleming", "pocock", "power"] | None = None
    """Of `group_sequential`: how the error rate is spent over the looks; `obrien-fleming` without it."""

    @model_validator(mode="after")
    def _of_its_evaluation(self) -> PairedDesign:
        alone = self.together is False
        if alone and self.evaluation not in (None, "fixed"):
            raise ValueError(f"evaluation fixed, as together is false; this is {self.evaluation}")
        _check_looks(self, self.evaluation or ("fixed" if alone else "sequential"))
        return self


class SwitchbackDesign(Strict):
    """Blocks of time, for when only one version fits at a time; fields as in `run_switchback`."""

    kind: Literal["switchback"]
    blocks: Annotated[int, Field(ge=4, le=MOST_STAGES, multiple_of=2)] = 8
    """How many, in adjacent pairs of one for each version."""
    block_s: Above0 | None = None
    """How long each lasts, its prompts asked again and again; without it each asks its part of the prompts once."""
    warmup_requests: Annotated[int, Field(ge=0)] = 0
    """At the start of each block, left out of the comparison."""
    warmup_s: Annotated[float, Field(ge=0.0)] = 0.0
    in_place: bool = False
    """The engine takes over the other version's weights between blocks, instead of another engine being started."""


class CanaryDesign(Strict):
    """The candidate starts small and earns every step; fields as in `CanaryStrategy`."""

    kind: Literal["canary"]
    initial_percentage: Percent = 5.0
    step_percentage: Percent = 15.0
    evaluation_period_minutes: Above0 = 15.0
    max_error_rate_threshold: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    min_requests: Whole = 50
    max_duration_hours: Above0 = 24.0
    guardrails: tuple[GuardrailField, ...] = ()
    evaluation: Literal["sequential", "thresholds"] = "sequential"
    alpha: Annotated[float, Field(gt=0.0, le=0.5)] = 0.05


Design = Annotated[RandomisedDesign | PairedDesign | SwitchbackDesign | CanaryDesign, Field(discriminator="kind")]


class ClosedLoopLoad(Strict):
    """So many requests under way at once; the next one starts when one ends."""

    kind: Literal["closed_loop"] = "closed_loop"
    concurrency: Whole = 16


class PoissonLoad(Strict):
    """Requests arrive at random, independently of how fast they are answered."""

    kind: Literal["poisson"]
    rate_per_s: Above0
    concurrency: Whole = 256
    """Requests under way at most; an arrival above it waits for its turn."""


class TraceLoad(Strict):
    """Requests arrive when a trace says."""

    kind: Literal["trace"]
    path: Text | None = None
    """CSV or JSONL file with a column `at_s`, seconds from any origin."""
    at_s: tuple[Annotated[float, Field(ge=0.0)], ...] | None = None
    """The arrivals themselves, instead of a file."""
    speed: Above0 = 1.0
    """2 replays the trace twice as fast."""
    concurrency: Whole = 256

    @model_validator(mode="after")
    def _one_source(self) -> TraceLoad:
        if (self.path is None) == (self.at_s is None):
            raise ValueError("exactly one of path and at_s")
        return self


Load = Annotated[ClosedLoopLoad | PoissonLoad | TraceLoad, Field(discriminator="kind")]


class ExactMatchScorer(Strict):
    """1 when the answer equals the reference."""

    kind: Literal["exact_match"]
    name: Name = "exact_match"
    ignore_case: bool = False


class MatchesScorer(Strict):
    """1 when a regular expression is found in the answer."""

    kind: Literal["matches"]
    pattern: Text
    name: Name = "matches"
    full: bool = False
    """The whole answer has to match."""

    @field_validator("pattern")
    @classmethod
    def _readable(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"a regular expression ({error})") from error
        return pattern


class FunctionScorer(Strict):
    """A function of one `Sample`."""

    kind: Literal["function"]
    function: Reference
    name: Name


Scorer = Annotated[ExactMatchScorer | MatchesScorer | FunctionScorer, Field(discriminator="kind")]


class JudgeSpec(Strict):
    """A model that grades every answer; its scores are the metric `name`."""

    version: VersionSpec
    template: Text | None = None
    """May hold {prompt}, {output} and {reference}; the scorer's default without it."""
    name: Name = "judge"
    low: Finite = 0.0
    high: Finite = 1.0
    """The scale; a reply outside it is a failed score, not a grade."""

    @model_validator(mode="after")
    def _adds_up(self) -> JudgeSpec:
        if self.template is not None and "{output}" not in self.template:
            raise InvalidInput("judge.template", self.template, "text that contains {output}")
        if not self.low < self.high:
            raise InvalidInput("judge.high", self.high, f"above low ({self.low:g})")
        return self


class Policy(Strict):
    """What counts as success, and what is done with the verdict."""

    success: Annotated[tuple[Literal[DECISIONS], ...], Field(min_length=1)] | None = None  # type: ignore[valid-type]
    """Decisions that exit with 0; by default `ship` (randomised, switchback), `promote` (canary), or `ship` and
    `equivalent` (paired)."""
    apply: bool = True
    """Move traffic as the verdict says before the engine is closed, so that the report shows the switch."""


class Budget(Strict):
    """The run stops asking at whichever comes first."""

    requests: Whole | None = None
    time_s: Above0 | None = None
    tokens: Whole | None = None
    """Generated tokens."""


class NotebookSpec(Strict):
    """What papermill executes."""

    path: Text = "notebooks/run_experiment.ipynb"
    parameters: FreeForm = {}
    """Further parameters of a notebook of your own."""
    cell_timeout_s: Whole = 3600
    start_timeout_s: Whole = 60


class EngineSpec(Strict):
    """Settings of the engine that are not the versions'."""

    record_text: bool = True
    mlflow: str | None = None
    """Store or server to publish to; none without it."""
    register_in_mlflow: bool = False
    """Keep MLflow's model registry in step: versions, aliases, and the verdict that made the champion."""
    wandb: str | None = None
    """Folder or server of Weights & Biases to publish to; none without it."""
    backends: dict[Name, Call] = {}
    """Further backends by name: functions that return an instance factory."""
    max_cached_models: Whole = 5

    @model_validator(mode="after")
    def _somewhere_to_register(self) -> EngineSpec:
        if self.register_in_mlflow and not self.mlflow:
            raise ValueError("a store or server in engine.mlflow, as register_in_mlflow is true")
        return self


class ScheduleSpec(Strict):
    """When it runs by itself; see docs/schedules.md."""

    cron: Text
    """Five fields as in crontab(5)."""
    time_zone: Text = "UTC"
    missed: Literal["run_once", "skip"] = "run_once"
    """After the host was off: run once, or wait for the next time."""
    grace_minutes: Above0 = 15.0
    """With `skip`: a start this late still counts as on time. The host looks once a minute."""
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    """After an error (exit status of 64 or more); verdicts are never retried."""
    backoff_s: Above0 = 60.0
    """Before the first retry; doubled each time."""
    wait_for_accelerator_s: Annotated[float, Field(ge=0.0)] = 0.0

    @field_validator("cron")
    @classmethod
    def _readable(cls, cron: str) -> str:
        try:
            check_cron(cron)
        except InvalidInput as error:
            raise ValueError(error.allowed) from error
        return cron

    @field_validator("time_zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        try:
            check_zone(zone)
        except InvalidInput as error:
            raise ValueError(error.allowed) from error
        return zone


class WatchSpec(Strict):
    """Compare the run with the last good one of the same experiment, and alert when it is worse."""

    metrics: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Which of the spec's metrics; the primary and the guardrails without it."""
    arms: Annotated[tuple[Literal["baseline", "candidate"], ...], Field(min_length=1)] = ("candidate",)
    against: Text | None = None
    """Id of a run to compare with each time. Without it, it is the last good one, and small losses may add up."""
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.01
    webhook_env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = None
    """Environment variable that holds the address alerts are posted to; addresses do not belong into specs."""
