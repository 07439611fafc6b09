"""The path of one request: arm → lease → instance → tokens → row of evidence.

Choosing the arm, taking the lease and noting the assignment happen with no `await` between them, so that a request is
answered by a version that was routable at the very moment it was admitted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from abswitch.clock import Clock
from abswitch.domain import (
    CANCELLED,
    Completion,
    FinishReason,
    GenerationRequest,
    ModelVersion,
    Placement,
    Prompt,
    RequestRecord,
    Residency,
    TokenChunk,
    VersionKey,
)
from abswitch.errors import (
    EngineClosed,
    InstanceDied,
    InstanceNotRunning,
    LoadFailed,
    NoActiveVersion,
    QueueFull,
    QueueTimeout,
    RequestFailed,
    StreamBroken,
)
from abswitch.records import AssignmentRecord
from abswitch.serving.assignments import Assignments
from abswitch.serving.cache import CachedVersion
from abswitch.serving.instance import ModelInstance
from abswitch.serving.queueing import AdmissionQueue, WaitingRequest
from abswitch.serving.router import PINNED, SHADOW, RequestRouter, RoutedArm, RouteSnapshot
from abswitch.serving.transition import Lease, TransitionManager

log = logging.getLogger(__name__)
_DEATHS_ENDURED = 4
"""A request that met this many dead instances is more likely their cause than their victim."""


@dataclass(slots=True, eq=False)
class Submission:
    """One request as the caller made it, and what became of it (filled in while it is served).

    Attributes:
        overrides: sampling fields that differ from the version's defaults.
        version: ask this version whatever the route says (arm `pinned`).
        reference: the right answer, for scorers.
        placement: what its row says of its arm, where an experiment's design and no route chose the version.
        copy_of: of a shadow's copy, the request it copies.
        keep_output: its row carries the answer even where no text is recorded otherwise.
        tier: residency, at arrival, of what was to serve it.
        deaths: how many instances died under it.
        last: the latest chunk; the answer is whole when it carries a finish reason.
        record: the row of evidence, once it ended.
    """

    request_id: str
    model_id: str
    prompt: Prompt
    unit_id: str
    overrides: dict[str, object]
    submitted_mono_s: float
    version: str | None = None
    reference: str | None = None
    placement: Placement | None = None
    copy_of: str | None = None
    keep_output: bool = False
    tier: Residency = Residency.RESIDENT
    deaths: int = 0
    served_by: str | None = None
    fallback: bool = False
    first_token_mono_s: float | None = None
    last: TokenChunk | None = None
    texts: list[str] = field(default_factory=list)
    record: RequestRecord | None = None

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self.texts)

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the generation ended; None when it did not end by itself."""
        return None if self.last is None else self.last.finish_reason

    def completion(self) -> Completion:
        """The whole answer; only once it ended."""
        row, reason = self.record, self.finish_reason
        assert row is not None, "asked for before the stream ended"
        assert reason is not None, "asked for a stream that did not end by itself"
        assert row.served_version is not None, "an answer was served by some version"
        return Completion(
            request_id=row.request_id,
            text=self.text,
            model_id=row.model_id,
            arm=row.arm,
            assigned_version=row.assigned_version,
            served_version=row.served_version,
            unit_id=row.unit_id,
            operation_id=row.operation_id,
            finish_reason=reason,
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            queue_s=row.queue_s,
            first_token_s=row.total_s if row.first_token_s is None else row.first_token_s,
            total_s=row.total_s,
        )


def render(prompt: Prompt, version: ModelVersion) -> Prompt:
    """Apply the version's prompt template to a plain prompt; chat messages are the chat template's business."""
    template = version.config.prompt_template
    if template is None or not isinstance(prompt, str):
        return prompt
    return template.replace("{prompt}", prompt)


class Dispatcher:
    """Serves requests from the current snapshot. Lives on the engine's loop.

    Args:
        queue: where requests wait while nothing can serve them.
        load: brings up the version that a request names itself.
        ready: whether `load` would return without waiting.
        residency: how much of a version is loaded now.
        record: takes one row per admitted request; must not block.
        assigned: told, at admission, which arm of an operation a unit met; must not block.
        on_answer: told of every whole answer to a user, for scoring; must not block.
        on_lost: told when an instance died: (model_id, instance, reason).
        record_text: whether rows carry prompt and output.
    """

    def __init__(
        self,
        queue: AdmissionQueue,
        router: RequestRouter,
        transitions: TransitionManager,
        clock: Clock,
        *,
        load: Callable[[str, str], Awaitable[CachedVersion]],
        ready: Callable[[VersionKey], bool],
        residency: Callable[[VersionKey], Residency],
        record: Callable[[RequestRecord], None],
        assigned: Callable[[AssignmentRecord], None] = lambda _: None,
        on_answer: Callable[[Submission], None],
        on_lost: Callable[[str, ModelInstance, str], None],
        record_text: bool,
    ) -> None:
        self._queue = queue
        self._router = router
        self._transitions = transitions
        self._clock = clock
        self._load = load
        self._ready = ready
        self._residency = residency
        self._record = record
        self._assigned = Assignments(clock, assigned)
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._record_text = record_text
        self._copies: dict[tuple[str, str | None], set[asyncio.Task[None]]] = {}
        """Copies under way by model and operation: one whose shadow is slow must not use up the room of another's."""
        self.copies_left_out = 0
        self._closed = False

    async def complete(self, submission: Submission) -> Completion:
        """Serve one request to its end; errors as in `stream`."""
        async with aclosing(self.stream(submission)) as chunks:
            async for _ in chunks:
                pass
        return submission.completion()

    async def stream(self, submission: Submission) -> AsyncGenerator[TokenChunk, None]:
        """Serve one request; the row is recorded however it ends.

        This is the hot path: one generator around the instance's own, and per token no call but the instance's.

        Raises:
            NoActiveVersion, QueueFull, QueueTimeout: nothing serves the model; no row, as nothing was admitted.
            LoadFailed, QueueFull, QueueTimeout: the version that the request names itself does not load (in time), or
                too many wait already; no row either.
            PromptTooLong: the prompt does not fit.
            InstanceDied: the instance died before its first token and no other could take over.
            StreamBroken: it died later; what had been delivered is in `text`.
            EngineClosed: the engine was shut down; its row says that it was cancelled.
        """
        snapshot, arm = await self._admission(submission)
        # From here to the lease there is no `await`: the arm is routable at the very moment the request is admitted.
        lease = first = self._hold(submission, arm)
        serving = arm
        error: BaseException | None = None
        texts = submission.texts
        try:
            if snapshot is not None and snapshot.candidates and submission.copy_of is None:
                self._assigned.note(snapshot, arm, submission.unit_id, submission.request_id)
            if snapshot is not None and snapshot.mirror is not None:
                self._mirror(submission, snapshot)
            while True:
                try:
                    async with aclosing(serving.instance.generate(self._request(submission, serving))) as chunks:
                        async for chunk in chunks:
                            if submission.first_token_mono_s is None and chunk.output_tokens:
                                submission.first_token_mono_s = self._clock.monotonic_s()
                            submission.last = chunk
                            texts.append(chunk.text)
                            yield chunk
                    return
                except (InstanceDied, InstanceNotRunning) as death:
                    if self._closed:
                        raise EngineClosed("the engine was shut down while the request was under way") from death
                    self._transitions.release(lease)
                    serving = await self._after_death(submission, snapshot, serving, death)
                    lease = self._hold(submission, serving)
        except BaseException as caught:
            error = caught
            raise
        finally:
            self._transitions.release(lease)
            submission.record = self._row(submission, snapshot, arm, serving, first, error)
            self._record(submission.record)
            if submission.finish_reason is not None:
                self._on_answer(submission)

    async def _admission(self, submission: Submission) -> tuple[RouteSnapshot | None, RoutedArm]:
        if submission.copy_of is not None:
            snapshot = self._router.current(submission.model_id)
            if snapshot is None or snapshot.mirror is None:
                raise NoActiveVersion("the shadow ended before its copy was admitted")
            return snapshot, snapshot.mirror.arm
        if submission.version is not None:
            return None, await self._pinned(submission, submission.version)
        snapshot = self._router.current(submission.model_id)
        if snapshot is None:
            submission.tier = Residency.COLD
            snapshot = await self._queue.route(self._waits(submission))
        return snapshot, snapshot.choose(submission.unit_id)

    async def _pinned(self, submission: Submission, version: str) -> RoutedArm:
        key = (submission.model_id, version)
        submission.tier = self._residency(key)
        try:
            if self._ready(key):
                cached = await self._load(*key)
            else:
                cached = await self._queue.loaded(self._waits(submission, version), lambda: self._load(*key))
        except LoadFailed as failure:
            if self._closed:  # what loads as the engine ends is stopped, which is no failure of the version
                raise EngineClosed("the engine was shut down while the request waited") from failure
            raise
        return RoutedArm(PINNED, version, cached.instance, 1.0, cached.path, cached.weights_digest)

    def _waits(self, submission: Submission, version: str | None = None) -> WaitingRequest:
        return WaitingRequest(
            request_id=submission.request_id,
            model_id=submission.model_id,
            unit_id=submission.unit_id,
            version=version,
            since_mono_s=self._clock.monotonic_s(),
        )

    def _hold(self, submission: Submission, arm: RoutedArm) -> Lease:
        lease = Lease(
            submission.request_id,
            (submission.model_id, arm.version),
            arm.name,
            submission.unit_id,
            self._clock.monotonic_s(),
        )
        self._transitions.acquire(lease)
        return lease

    def _request(self, submission: Submission, arm: RoutedArm) -> GenerationRequest:
        version = arm.instance.version
        submission.served_by = version.version
        return GenerationRequest(
            request_id=submission.request_id,
            prompt=render(submission.prompt, version),
            sampling=version.config.sampling.merged(submission.overrides),
        )

    async def _after_death(
        self,
        submission: Submission,
        admitted: RouteSnapshot | None,
        dead: RoutedArm,
        death: InstanceDied | InstanceNotRunning,
    ) -> RoutedArm:
        """The arm that may still answer a request without a token: the stable one, restarted if that is what died.

        Raises:
            StreamBroken: tokens were sent; another instance must not go on with them.
            InstanceDied, InstanceNotRunning: there is no other, or too many died under this request.
        """
        self._on_lost(submission.model_id, dead.instance, str(death))
        if submission.last is not None:
            raise StreamBroken(
                f"version {dead.version!r} died after {submission.last.output_tokens} token(s): {death}",
                text=submission.text,
            ) from death
        submission.deaths += 1
        if submission.deaths >= _DEATHS_ENDURED or submission.copy_of is not None:
            raise death
        serving = await self._other(submission, admitted, dead, death)
        submission.fallback = True  # only now: a request that nobody was asked again is a plain failure
        return serving

    async def _other(
        self,
        submission: Submission,
        admitted: RouteSnapshot | None,
        dead: RoutedArm,
        death: InstanceDied | InstanceNotRunning,
    ) -> RoutedArm:
        if admitted is None:
            try:
                return await self._pinned(submission, dead.version)
            except (LoadFailed, QueueFull, QueueTimeout) as nothing:
                raise death from nothing
        current = self._router.current(submission.model_id)
        while current is None or current.stable.instance is dead.instance:
            try:
                newer_than = current.epoch if current else 0
                current = await self._queue.route(self._waits(submission), newer_than=newer_than)
            except RequestFailed as nothing:
                raise death from nothing
        return current.stable

    # --- copies -----------------------------------------------------------------------------------------------------

    def _mirror(self, submission: Submission, snapshot: RouteSnapshot) -> None:
        mirror = snapshot.mirror
        if mirror is None or submission.copy_of is not None or not snapshot.is_mirrored(submission.request_id):
            return
        shadowing = (snapshot.model_id, snapshot.operation_id)
        if len(self._copies.get(shadowing, ())) >= mirror.max_in_flight:
            self.copies_left_out += 1
            return
        submission.keep_output = mirror.keep_outputs
        copy = Submission(
            request_id=f"{submission.request_id}-{SHADOW}",
            model_id=submission.model_id,
            prompt=submission.prompt,
            unit_id=submission.unit_id,
            overrides=submission.overrides,
            submitted_mono_s=self._clock.monotonic_s(),
            reference=submission.reference,
            copy_of=submission.request_id,
            keep_output=mirror.keep_outputs,
        )
        task = asyncio.get_running_loop().create_task(self._copy(copy), name=copy.request_id)
        self._copies.setdefault(shadowing, set()).add(task)
        task.add_done_callback(lambda ended: self._copied(shadowing, ended))

    def _copied(self, shadowing: tuple[str, str | None], ended: asyncio.Task[None]) -> None:
        under_way = self._copies[shadowing]
        under_way.discard(ended)
        if not under_way:
            del self._copies[shadowing]

    async def _copy(self, copy: Submission) -> None:
        try:
            await self.complete(copy)
        except Exception as error:  # its row says the same; a shadow's failure is nobody else's
            log.debug("copy %s: %s", copy.request_id, error)

    async def close(self) -> None:
        """End the copies under way; users' requests end, as cancelled ones, with the instances that answer them."""
        self._closed = True
        self._queue.close()
        copies = [task for tasks in self._copies.values() for task in tasks]
        for task in copies:
            task.cancel()
        await asyncio.gather(*copies, return_exceptions=True)

    # --- evidence ---------------------------------------------------------------------------------------------------

    def _row(
        self,
        submission: Submission,
        snapshot: RouteSnapshot | None,
        arm: RoutedArm,
        serving: RoutedArm,
        lease: Lease,
        error: BaseException | None,
    ) -> RequestRecord:
        end_s = self._clock.monotonic_s()
        origin_s, first_s, last = submission.submitted_mono_s, submission.first_token_mono_s, submission.last
        reason = submission.finish_reason
        error_type, error_message = (None, None) if reason is not None else _failure(error)
        placed = submission.placement or Placement(
            operation_id=(snapshot.operation_id if snapshot else None) or "",
            arm=arm.name,
            step=snapshot.step if snapshot else 0,
            pair_id=submission.copy_of,
        )
        return RequestRecord(
            request_id=submission.request_id,
            model_id=submission.model_id,
            operation_id=placed.operation_id or None,
            step=placed.step,
            route_epoch=snapshot.epoch if snapshot else 0,
            arm=placed.arm,
            assigned_version=arm.version,
            served_version=submission.served_by,
            unit_id=submission.unit_id,
            fallback=submission.fallback,
            admitted_at_s=self._clock.wall_s() - (end_s - lease.admitted_mono_s),
            admitted_mono_s=lease.admitted_mono_s,
            queue_s=lease.admitted_mono_s - origin_s,
            first_token_s=None if first_s is None else first_s - origin_s,
            total_s=end_s - origin_s,
            prompt_tokens=last.prompt_tokens if last else None,
            output_tokens=last.output_tokens if last else 0,
            finish_reason=None if reason is None else reason.value,
            error_type=error_type,
            error_message=error_message,
            prompt=prompt_text(submission.prompt) if self._record_text else None,
            output=submission.text if self._record_text or submission.keep_output else None,
            pair_id=placed.pair_id,
            weights_digest=serving.weights_digest,
            tier=submission.tier.value,
            switch_path=serving.path.value,
            propensity=arm.share if snapshot and snapshot.candidates and submission.copy_of is None else None,
        )


def prompt_text(prompt: Prompt) -> str:
    """The prompt as one text; chat messages as `role: content`, one below the other."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{m.role}: {m.content}" for m in prompt)


def _failure(error: BaseException | None) -> tuple[str, str]:
    if error is None or isinstance(error, GeneratorExit):
        return CANCELLED, "the caller stopped reading"
    if isinstance(error, EngineClosed):
        return CANCELLED, str(error)  # the version did nothing wrong
    if isinstance(error, RequestFailed):
        return type(error).__name__, str(error)
    name = CANCELLED if type(error).__name__ == "CancelledError" else type(error).__name__
    return name, str(error) or "the caller went away"
