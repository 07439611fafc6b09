"""What tracking sinks have in common: one that publishes through an outbox, and several that are used as one."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from abswitch.store.outbox import Outbox, OutboxFlusher
from abswitch.store.recorder import Recorder
from abswitch.store.tracking import TrackedExperiment, TrackingLinks, TrackingSink, TrackingStatus


class OutboxSink(ABC):
    """A sink whose jobs wait in the store until they are delivered, exactly once each; fulfils `TrackingSink`.

    Args:
        recorder: the store whose outbox holds what is to be published; jobs left by an earlier process are caught up,
            from now on: a subclass has to be ready to deliver before it calls this.
        name: of the sink in the table `outbox`.
        target: the sink in words, for messages.
    """

    def __init__(self, recorder: Recorder, *, name: str, target: str) -> None:
        self._name = name
        self._outbox = Outbox(recorder, name)
        self._flusher = OutboxFlusher(self._outbox, self.deliver, target=target)

    @abstractmethod
    def deliver(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Publish a job, in the flusher's thread; returns `TrackingLinks` as a dictionary. See `OutboxFlusher`."""

    @property
    def names(self) -> tuple[str, ...]:
        return (self._name,)

    def publish(self, experiment: TrackedExperiment) -> str:
        """Queue an experiment durably; published in the background. The same content again is published once.

        Raises:
            InvalidInput: two keys become the same under the rules for names.
            StoreError: the store is closed.
        """
        job_id = experiment.job_id()
        self._flusher.add(job_id, experiment.to_dict())
        return job_id

    def links(self, operation_id: str) -> TrackingLinks | None:
        """Where the operation's runs are compared; None until they are published."""
        result = self._outbox.result(operation_id)
        return None if result is None else TrackingLinks.of(result)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until nothing is pending; False as soon as the sink fails, or after `timeout_s`."""
        return self._flusher.flush(timeout_s)

    def status(self) -> TrackingStatus:
        """Counts over all processes that used this store."""
        return self._flusher.status()

    def close(self, timeout_s: float = 30.0) -> None:
        """Flush and stop; to be called before the recorder is closed. Idempotent."""
        self._flusher.close(timeout_s)


class SeveralSinks:
    """Sinks used as one, each with an outbox of its own: one that is down holds up no other. Fulfils `TrackingSink`.

    Args:
        sinks: at least one; links are those of the first that has any.
    """

    def __init__(self, sinks: Sequence[TrackingSink]) -> None:
        self._sinks = tuple(sinks)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for sink in self._sinks for name in sink.names)

    def publish(self, experiment: TrackedExperiment) -> str:
        """Queue an experiment with every sink; returns the job's id, which is the same for all."""
        first, *_ = [sink.publish(experiment) for sink in self._sinks]
        return first

    def links(self, operation_id: str) -> TrackingLinks | None:
        """Where the operation can be looked at, in the first sink that has it; the view `tracking_links` has all."""
        return next(filter(None, (sink.links(operation_id) for sink in self._sinks)), None)

    def flush(self, timeout_s: float = 30.0) -> bool:
        """Wait until nothing is pending anywhere; False if a sink fails, or after `timeout_s` together."""
        end_s = time.monotonic() + timeout_s
        caught_up = [sink.flush(max(0.1, end_s - time.monotonic())) for sink in self._sinks]  # each of them tries
        return all(caught_up)

    def status(self) -> TrackingStatus:
        """The sums, and the first error."""
        each = [sink.status() for sink in self._sinks]
        return TrackingStatus(
            published=sum(one.published for one in each),
            pending=sum(one.pending for one in each),
            given_up=sum(one.given_up for one in each),
            last_error=next((one.last_error for one in each if one.last_error is not None), None),
        )

    def close(self, timeout_s: float = 30.0) -> None:
        """Close every sink, also when one of them fails to."""
        end_s = time.monotonic() + timeout_s
        with ExitStack() as ends:
            for sink in reversed(self._sinks):
                ends.callback(self._end(sink, end_s))

    @staticmethod
    def _end(sink: TrackingSink, end_s: float) -> Callable[[], None]:
        return lambda: sink.close(max(0.1, end_s - time.monotonic()))


def together(sinks: Sequence[TrackingSink]) -> TrackingSink | None:
    """Any number of sinks as one; None for none."""
    if not sinks:
        return None
    return sinks[0] if len(sinks) == 1 else SeveralSinks(sinks)
