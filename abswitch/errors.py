"""Every error abswitch raises, in one tree.

AbswitchError
├── InvalidInput (ValueError)          a value the caller gave; names field, value, allowed
│   ├── UnknownModel, UnknownVersion   nothing registered under that name
│   ├── DuplicateVersion               the name is taken
│   └── BadModelSource                 a folder or hub id that cannot be served
├── SwitchRefused                      valid, but not now
│   ├── OperationInProgress            another operation holds the model
│   └── OperationFinished              the operation already ended
├── SwitchFailed                       a switch ended without its candidate serving
├── IllegalTransition                  the state machine was given an event its phase does not take
├── InstanceError                      a running (or starting) version
│   ├── LoadFailed                     it never became able to serve
│   │   └── OutOfBudget                it does not fit beside what is in use
│   ├── InstanceNotRunning             asked before start or after stop
│   └── InstanceDied                   its process or server went away
├── RequestFailed                      one request
│   ├── NoActiveVersion                nothing routable serves this model
│   ├── QueueFull, QueueTimeout        nothing could serve it, and too many waited or it waited too long
│   ├── PromptTooLong                  the prompt does not fit the version's context
│   └── StreamBroken                   the instance died after tokens were already sent
├── EngineClosed                       the engine was shut down
├── ScorerError                        a scorer raised
├── StoreError                         evidence could not be written or read
├── MissingExtra (ImportError)         an optional part of abswitch is not installed; names the extra
└── TrainingFailed                     the tiny models of `abswitch.testing` could not be made
"""

from __future__ import annotations

_READABLE = 2000
"""Characters of a refused value that a message shows at most."""


class AbswitchError(Exception):
    """Base of every error abswitch raises on purpose."""


class InvalidInput(AbswitchError, ValueError):
    """A value that is not allowed; raised before anything changed.

    Attributes:
        field: name of the argument or configuration field, dotted when nested.
        value: what was given.
        allowed: what would have been accepted, in words.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field}: got {_shown(value)}; allowed: {allowed}")


def _shown(value: object) -> str:
    try:
        shown = repr(value)
    except Exception:  # e.g. a whole number of more digits than Python writes down
        return f"a value of type {type(value).__name__} that cannot be shown"
    return shown if len(shown) <= _READABLE else shown[:_READABLE] + "…"


class UnknownModel(InvalidInput):
    """No model of that name is registered."""


class UnknownVersion(InvalidInput):
    """The model has no version of that name."""


class DuplicateVersion(InvalidInput):
    """The model already has a version of that name."""


class BadModelSource(InvalidInput):
    """A model folder or hub id that cannot, or must not, be loaded."""


class SwitchRefused(AbswitchError):
    """The command is valid but cannot be carried out now."""


class OperationInProgress(SwitchRefused):
    """Another operation holds the model; `operation_id` names the holder."""

    def __init__(self, model_id: str, operation_id: str, phase: str) -> None:
        self.model_id = model_id
        self.operation_id = operation_id
        super().__init__(
            f"model {model_id!r} is held by operation {operation_id} ({phase}); "
            f"wait for it, or end it with abort_switch({operation_id!r})"
        )


class OperationFinished(SwitchRefused):
    """The operation already ended; `phase` says how."""

    def __init__(self, operation_id: str, phase: str) -> None:
        self.operation_id = operation_id
        self.phase = phase
        super().__init__(f"operation {operation_id} already ended: {phase}")


class SwitchFailed(AbswitchError):
    """A switch ended without its candidate serving; `reason` says why."""

    def __init__(self, operation_id: str, phase: str, reason: str, stable: str | None) -> None:
        self.operation_id = operation_id
        self.reason = reason
        serves = f"version {stable!r} still serves" if stable else "nothing serves yet"
        super().__init__(f"operation {operation_id} {phase}: {reason} ({serves})")


class IllegalTransition(AbswitchError):
    """The state machine was given an event that its phase does not take; nothing changed."""

    def __init__(self, phase: str, event: str) -> None:
        self.phase = phase
        self.event = event
        super().__init__(f"phase {phase} does not take event {event}")


class InstanceError(AbswitchError):
    """Something went wrong in, or with, a running version."""


class LoadFailed(InstanceError):
    """The version never became able to serve; whatever served before still does."""


class OutOfBudget(LoadFailed):
    """A version does not fit into the memory budget beside what is in use; nothing was loaded, nothing unloaded."""


class InstanceNotRunning(InstanceError):
    """The instance was used before `start` or after `stop`."""


class InstanceDied(InstanceError):
    """The process or server behind the instance went away."""


class RequestFailed(AbswitchError):
    """One request could not be answered."""


class NoActiveVersion(RequestFailed):
    """The model has no version that traffic may reach."""


class QueueFull(RequestFailed):
    """Nothing can serve the model right now, and as many requests as are allowed wait for it already."""


class QueueTimeout(RequestFailed):
    """Nothing came to serve the model in the time a request may wait."""


class PromptTooLong(RequestFailed, ValueError):
    """The prompt does not fit the context length of the version that was to serve it."""


class StreamBroken(RequestFailed):
    """The instance died after it had already produced tokens; `text` holds what was sent."""

    def __init__(self, message: str, *, text: str) -> None:
        self.text = text
        super().__init__(message)


class EngineClosed(AbswitchError):
    """The engine was shut down; build a new one."""


class ScorerError(AbswitchError):
    """A scorer raised; the answer it was given is kept, its score is missing."""


class StoreError(AbswitchError):
    """Evidence could not be written to, or read from, the store."""


class MissingExtra(AbswitchError, ImportError):
    """An optional part of abswitch is not installed; the message names what to install."""

    def __init__(self, what: str, missing: tuple[str, ...], extras: tuple[str, ...]) -> None:
        self.missing = missing
        self.extras = extras
        ways = " or ".join(f"pip install 'abswitch[{extra}]'" for extra in extras)
        super().__init__(f"{what} needs {', '.join(missing)}, not installed here; {ways}")


class TrainingFailed(AbswitchError):
    """The tiny models of `abswitch.testing` could not be made; nothing was cached."""
