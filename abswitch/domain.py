"""The words of abswitch as frozen values. No behaviour beyond validation; no import of anything that runs.

Shares are fractions 0–1, durations and instants are seconds (`_s`), sizes are bytes (`_bytes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from abswitch import checks
from abswitch.errors import InvalidInput

EMPTY: Mapping[str, Any] = MappingProxyType({})


class SwitchingStrategyType(StrEnum):
    """How traffic moves from the stable version to the candidate."""

    IMMEDIATE = "immediate"
    GRADUAL = "gradual"
    CANARY = "canary"
    AB_TEST = "ab_test"
    SHADOW = "shadow"
    SWITCHBACK = "switchback"
    BANDIT = "bandit"


class Residency(StrEnum):
    """How much of a version is loaded."""

    RESIDENT = "resident"
    SLEEPING = "sleeping"
    DISCARDED = "discarded"
    COLD = "cold"


class SwitchPath(StrEnum):
    """How an instance last became able to serve.

    `load`: an engine was started for it, and read its weights. `adapter`: its adapter was added to an engine that ran
    already. `join`: an engine that ran already serves it as it is. `wake`: it slept. `in-place`: its weights were put
    into an engine in place of another version's. `restart`: it was started again after it was lost.
    """

    LOAD = "load"
    ADAPTER = "adapter"
    JOIN = "join"
    WAKE = "wake"
    IN_PLACE = "in-place"
    RESTART = "restart"


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters, named as vLLM and the OpenAI API name them; the defaults are vLLM's but for `max_tokens`.

    Args:
        temperature: 0 is greedy decoding; at most 2.
        top_p: nucleus mass in (0, 1].
        top_k: keep the k likeliest tokens; 0 keeps all.
        max_tokens: upper bound of generated tokens (vLLM's own default, 16, surprises people).
        stop: strings that end the generation and are not part of the answer.
        seed: per-request seed; None leaves the engine's.
        presence_penalty, frequency_penalty: −2 to 2.
        repetition_penalty: above 0 and at most 2; 1 is neutral.
        ignore_eos: go on past the end-of-sequence token (for benchmarks).

    Raises:
        InvalidInput: any field is outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        checks.number("sampling.temperature", self.temperature, low=0.0, high=2.0)
        checks.number("sampling.top_p", self.top_p, low=0.0, high=1.0, above=True)
        checks.integer("sampling.top_k", self.top_k, low=0)
        checks.integer("sampling.max_tokens", self.max_tokens, low=1)
        if self.seed is not None:
            checks.integer("sampling.seed", self.seed, low=0)
        checks.number("sampling.presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        checks.number("sampling.frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        checks.number("sampling.repetition_penalty", self.repetition_penalty, low=0.0, high=2.0, above=True)
        checks.flag("sampling.ignore_eos", self.ignore_eos)
        object.__setattr__(self, "stop", _stop_strings(self.stop))

    def merged(self, overrides: Mapping[str, Any]) -> Self:
        """A copy with some fields replaced; unknown names raise `InvalidInput`."""
        if not overrides:
            return self
        checks.known_fields("sampling", overrides, (f.name for f in fields(self)))
        return replace(self, **overrides)

    @classmethod
    def of(cls, value: Sampling | Mapping[str, Any] | None) -> Sampling:
        """Accept a `Sampling`, a dictionary of its fields, or None for the defaults."""
        if isinstance(value, Sampling):
            return value
        if value is None:
            return Sampling()
        if not isinstance(value, Mapping):
            raise InvalidInput("sampling", value, "a Sampling, or a dictionary of its fields")
        return Sampling().merged(value)


def _stop_strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Sequence) or not all(isinstance(s, str) and s for s in value):
        raise InvalidInput("sampling.stop", value, "a non-empty string, or a list of them")
    return tuple(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What to serve and how; `register_model` turns it into a version.

    Args:
        model_id: the public name requests address, e.g. `support-bot`.
        model: a local Hugging Face folder, a hub id, or (backend `openai`) the name the server knows.
        backend: `vllm` (an engine in this machine), `openai` (any OpenAI-compatible server), or a name given to
            `SwitchingEngine(backends=…)`.
        revision: hub revision; None is the default branch.
        adapter: a local LoRA folder served on top of `model`.
        engine_args: passed on to vLLM's `AsyncEngineArgs`, or (backend `openai`) to the `openai` client.
        sampling: default sampling of every request; a request may override single fields.
        prompt_template: wraps a plain prompt; must contain `{prompt}`.
        trust_remote_code: allow the model folder to bring Python code of its own.

    Raises:
        InvalidInput: a field is malformed. That the model exists and can be served is checked at registration.
    """

    model_id: str
    model: str
    backend: str = "vllm"
    revision: str | None = None
    adapter: str | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling = field(default_factory=Sampling)
    prompt_template: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        checks.name("model_config.model_id", self.model_id)
        checks.name("model_config.backend", self.backend)
        checks.flag("model_config.trust_remote_code", self.trust_remote_code)
        for label in ("revision", "adapter", "prompt_template"):
            value = getattr(self, label)
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidInput(f"model_config.{label}", value, "a non-empty string, or None")
        model = str(self.model) if self.model is not None else ""
        if not model:
            raise InvalidInput("model_config.model", self.model, "a folder, a hub id, or a served model's name")
        object.__setattr__(self, "model", model)
        if self.prompt_template is not None and "{prompt}" not in self.prompt_template:
            raise InvalidInput("model_config.prompt_template", self.prompt_template, "text that contains {prompt}")
        if not isinstance(self.engine_args, Mapping):
            raise InvalidInput("model_config.engine_args", self.engine_args, "a dictionary")
        object.__setattr__(self, "engine_args", MappingProxyType(dict(self.engine_args)))
        object.__setattr__(self, "sampling", Sampling.of(self.sampling))

    @classmethod
    def of(cls, value: ModelConfig | Mapping[str, Any]) -> ModelConfig:
        """Accept a `ModelConfig` or a dictionary of its fields."""
        if isinstance(value, ModelConfig):
            return value
        if not isinstance(value, Mapping):
            raise InvalidInput("model_config", value, "a ModelConfig, or a dictionary of its fields")
        checks.known_fields("model_config", value, (f.name for f in fields(cls)))
        for required in ("model_id", "model"):
            if required not in value:
                raise InvalidInput(f"model_config.{required}", None, "a value; it is required")
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"engine_args": dict(self.engine_args), "sampling": asdict(self.sampling)}


VersionKey = tuple[str, str]
"""(model_id, version): how a version is named across models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One registered version; never changes afterwards.

    Attributes:
        commit: of a hub id, the commit that its revision meant at registration; it is what is served ever after.
    """

    version: str
    config: ModelConfig
    metadata: Mapping[str, Any] = field(default_factory=dict)
    registered_at_s: float = 0.0
    commit: str | None = None

    @property
    def model_id(self) -> str:
        return self.config.model_id

    @property
    def key(self) -> VersionKey:
        return (self.config.model_id, self.version)

    @property
    def pinned(self) -> ModelConfig:
        """The configuration with the commit in place of a revision that may come to mean something else."""
        return self.config if self.commit is None else replace(self.config, revision=self.commit)

    def __str__(self) -> str:
        return f"{self.model_id}:{self.version}"


class ChatMessage(NamedTuple):
    """One turn of a conversation; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


Prompt = str | tuple[ChatMessage, ...]


def prompt_of(value: object, *, where: str = "prompt") -> Prompt:
    """Normalise a prompt: a non-empty string, or chat messages as `{"role", "content"}` dictionaries or pairs.

    Raises:
        InvalidInput: it is neither, or it is empty.
    """
    if isinstance(value, str):
        if not value:
            raise InvalidInput(where, value, "a non-empty string, or a list of chat messages")
        return value
    if not isinstance(value, Sequence) or not value:
        raise InvalidInput(where, value, "a non-empty string, or a non-empty list of chat messages")
    return tuple(_message(f"{where}[{i}]", m) for i, m in enumerate(value))


def _message(where: str, value: object) -> ChatMessage:
    if isinstance(value, Mapping):
        checks.known_fields(where, value, ("role", "content"))
        value = (value.get("role"), value.get("content"))
    if not (isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, str) for v in value)):
        raise InvalidInput(where, value, 'a message {"role": "user", "content": "…"}')
    checks.one_of(f"{where}.role", value[0], ("system", "user", "assistant"))
    return ChatMessage(*value)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What an instance is asked to generate: the prompt template and sampling overrides are already applied."""

    request_id: str
    prompt: Prompt
    sampling: Sampling


class TokenChunk(NamedTuple):
    """A piece of an answer, in order.

    Attributes:
        index: 0, 1, 2, … without gaps within one answer.
        text: the new text (may be empty while a multi-byte character is incomplete).
        token_ids: the new tokens; empty where the server does not tell them.
        output_tokens: tokens generated so far, this chunk included.
        prompt_tokens: tokens of the prompt, where known.
        finish_reason: set on the last chunk and only there.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which makes no sense on a chunk
    text: str
    token_ids: tuple[int, ...]
    output_tokens: int
    prompt_tokens: int | None
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer with where it came from and what it cost.

    Attributes:
        assigned_version: the version of the arm the unit was assigned to.
        served_version: the version that generated the answer; differs only after a fallback.
        queue_s, first_token_s, total_s: seconds from submission to admission, to the first token, to the last.
    """

    request_id: str
    text: str
    model_id: str
    arm: str
    assigned_version: str
    served_version: str
    unit_id: str
    operation_id: str | None
    finish_reason: FinishReason
    prompt_tokens: int | None
    output_tokens: int
    queue_s: float
    first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFacts:
    """What starting an instance cost.

    Attributes:
        load_s: from the call of `start` to able to serve.
        memory_bytes: resident memory of the processes behind it (proportional parts of a shared engine are not
            split); 0 where there is no process of ours.
        device_memory_bytes: accelerator memory, where the platform tells.
        shared_engine: True when the version, with an adapter or without, joined an engine that was already running.
    """

    load_s: float
    memory_bytes: int = 0
    device_memory_bytes: int | None = None
    shared_engine: bool = False


CANCELLED = "Cancelled"
"""The recorded error of requests whose caller went away: neither an answer nor the version's fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthFacts:
    """What an instance knows of itself; facts only, no judgement.

    Attributes:
        alive: its process or server answers.
        residency: how much of it is loaded.
        in_flight: generations under way.
        last_token_age_s: seconds since any generation made progress; None before the first token.
        memory_bytes: as in `LoadFacts`, now.
        error: why it is not alive.
    """

    alive: bool
    residency: Residency
    in_flight: int
    last_token_age_s: float | None = None
    memory_bytes: int = 0
    error: str | None = None


class RequestRecord(NamedTuple):
    """One row of evidence; column order is that of the table `requests`.

    Attributes:
        route_epoch: number of the routing snapshot that admitted the request.
        step: stage of the operation at admission (0 outside operations).
        fallback: True when another version than the assigned one answered; such rows are left out of comparisons.
        admitted_mono_s: admission on the monotonic clock (orders requests against snapshots within one process).
        error_type: exception class name, or `CANCELLED`; None when answered.
        prompt, output: only when the engine was asked to record text; outputs also for both sides of a shadow pair.
        pair_id: of a shadow's copy, the request it copies; None otherwise.
        weights_digest: of the weights that answered; None where nobody can know them.
        tier: residency of the serving version when the request arrived: `resident`, `sleeping`, `cold` ….
        switch_path: how the serving instance last became able to serve, see `SwitchPath`.
        propensity: the chance that the unit had to be given this arm; None where nothing was drawn.
    """

    request_id: str
    model_id: str
    operation_id: str | None
    step: int
    route_epoch: int
    arm: str
    assigned_version: str
    served_version: str | None
    unit_id: str
    fallback: bool
    admitted_at_s: float
    admitted_mono_s: float
    queue_s: float
    first_token_s: float | None
    total_s: float
    prompt_tokens: int | None
    output_tokens: int
    finish_reason: str | None
    error_type: str | None
    error_message: str | None
    prompt: str | None
    output: str | None
    pair_id: str | None = None
    weights_digest: str | None = None
    tier: str = Residency.RESIDENT.value
    switch_path: str = SwitchPath.LOAD.value
    propensity: float | None = None


class ScoreRecord(NamedTuple):
    """One score of one answer; `value` is None when the scorer raised or did not come to it, and `error` says what.

    Attributes:
        source: `scorer` (applied as the answer was given), `late` (handed in afterwards) or `human`.
        comment: in a person's words.
    """

    request_id: str
    scorer: str
    value: float | None
    error: str | None
    scored_at_s: float
    source: str = "scorer"
    comment: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where an experiment's design puts a request that names its version: its row says so, instead of `pinned`.

    Attributes:
        operation_id: the experiment that the request belongs to.
        arm: `stable` or `candidate`.
        step: of a switchback, the block.
        pair_id: the same for what belongs together: both answers to a prompt, or all of one attempt at a block.
    """

    operation_id: str
    arm: str
    step: int = 0
    pair_id: str | None = None


class RouteRecord(NamedTuple):
    """One routing snapshot as committed: which versions were routable, with which shares, from when."""

    model_id: str
    epoch: int
    operation_id: str | None
    step: int
    arm: str
    version: str
    share: float
    committed_at_s: float
    committed_mono_s: float


class TransitionRecord(NamedTuple):
    """One move of an operation's state machine; written before its effects are carried out."""

    operation_id: str
    sequence: int
    model_id: str
    event: str
    phase_from: str
    phase_to: str
    step: int
    share: float
    reason: str
    at_s: float
