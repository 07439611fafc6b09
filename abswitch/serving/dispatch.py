"""The path of one request: arm → lease → instance → tokens → row of evidence.

Choosing the arm, taking the lease and noting the assignment happen with no `await` between them, so that a request is
answered by a version that was routable at the very moment it was admitted.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from abswitch.clock import Clock
from abswitch.domain import (
    Completion,
    FinishReason,
    GenerationRequest,
    ModelVersion,
    Prompt,
    RequestRecord,
    TokenChunk,
)
from abswitch.errors import InstanceDied, InstanceNotRunning, RequestFailed, StreamBroken
from abswitch.serving.instance import ModelInstance
from abswitch.serving.router import PINNED, RequestRouter, RoutedArm, RouteSnapshot
from abswitch.serving.transition import Lease, TransitionManager


@dataclass(slots=True, eq=False)
class Submission:
    """One request as the caller made it, and what became of it (filled in while it is served).

    Attributes:
        overrides: sampling fields that differ from the version's defaults.
        pinned: the instance to use instead of the route (arm `pinned`).
        completion: set once the last token was delivered.
    """

    request_id: str
    model_id: str
    prompt: Prompt
    unit_id: str
    overrides: dict[str, object]
    submitted_mono_s: float
    pinned: ModelInstance | None = None
    completion: Completion | None = None
    served_by: str | None = None
    fallback: bool = False
    chunks: int = 0
    output_tokens: int = 0
    prompt_tokens: int | None = None
    first_token_mono_s: float | None = None
    finish_reason: FinishReason | None = None
    texts: list[str] = field(default_factory=list)


def render(prompt: Prompt, version: ModelVersion) -> Prompt:
    """Apply the version's prompt template to a plain prompt; chat messages are the chat template's business."""
    template = version.config.prompt_template
    if template is None or not isinstance(prompt, str):
        return prompt
    return template.replace("{prompt}", prompt)


class Dispatcher:
    """Serves requests from the current snapshot. Lives on the engine's loop.

    Args:
        record: takes one row per admitted request; must not block.
        on_lost: told when an instance died: (model_id, instance, reason).
        record_text: whether rows carry prompt and output.
    """

    def __init__(
        self,
        router: RequestRouter,
        transitions: TransitionManager,
        clock: Clock,
        *,
        record: Callable[[RequestRecord], None],
        on_lost: Callable[[str, ModelInstance, str], None],
        record_text: bool,
    ) -> None:
        self._router = router
        self._transitions = transitions
        self._clock = clock
        self._record = record
        self._on_lost = on_lost
        self._record_text = record_text

    async def stream(self, submission: Submission) -> AsyncGenerator[TokenChunk, None]:
        """Serve one request; the row is recorded however it ends.

        Raises:
            NoActiveVersion: nothing serves the model; no row, as nothing was admitted.
            PromptTooLong: the prompt does not fit.
            InstanceDied: the instance died before its first token and no other version could take over.
            StreamBroken: it died later; what had been delivered is in `text`.
        """
        snapshot, arm = self._admit(submission)
        leases = [self._hold(submission, arm)]
        serving = arm
        error: BaseException | None = None
        try:
            while True:
                try:
                    async with aclosing(serving.instance.generate(self._request(submission, serving))) as chunks:
                        async for chunk in chunks:
                            self._take(submission, chunk)
                            yield chunk
                    return
                except (InstanceDied, InstanceNotRunning) as death:
                    serving = self._after_death(submission, snapshot, serving, death)
                    leases.append(self._hold(submission, serving))
        except BaseException as caught:
            error = caught
            raise
        finally:
            for lease in leases:
                self._transitions.release(lease)
            self._finish(submission, snapshot, arm, leases[0], error)

    def _admit(self, submission: Submission) -> tuple[RouteSnapshot | None, RoutedArm]:
        if submission.pinned is not None:
            return None, RoutedArm(PINNED, submission.pinned.version.version, submission.pinned, 1.0)
        snapshot = self._router.snapshot(submission.model_id)
        return snapshot, snapshot.choose(submission.unit_id)

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

    def _take(self, submission: Submission, chunk: TokenChunk) -> None:
        if submission.first_token_mono_s is None and chunk.output_tokens:
            submission.first_token_mono_s = self._clock.monotonic_s()
        submission.chunks += 1
        submission.output_tokens = chunk.output_tokens
        submission.prompt_tokens = chunk.prompt_tokens
        submission.finish_reason = chunk.finish_reason
        submission.texts.append(chunk.text)

    def _after_death(
        self,
        submission: Submission,
        admitted: RouteSnapshot | None,
        dead: RoutedArm,
        death: InstanceDied | InstanceNotRunning,
    ) -> RoutedArm:
        """The arm that may still answer: the stable version as routed now, once, if no token was sent.

        Raises:
            StreamBroken: tokens were sent; another version must not go on with them.
            InstanceDied, InstanceNotRunning: there is no other version.
        """
        self._on_lost(submission.model_id, dead.instance, str(death))
        if submission.chunks:
            raise StreamBroken(
                f"version {dead.version!r} died after {submission.output_tokens} token(s): {death}",
                text="".join(submission.texts),
            ) from death
        current = self._router.snapshots.get(submission.model_id) if admitted is not None else None
        if current is None or submission.fallback or current.stable.version == dead.version:
            raise death
        submission.fallback = True
        return current.stable

    def _finish(
        self,
        submission: Submission,
        snapshot: RouteSnapshot | None,
        arm: RoutedArm,
        lease: Lease,
        error: BaseException | None,
    ) -> None:
        end_s = self._clock.monotonic_s()
        origin_s = submission.submitted_mono_s
        first_s = submission.first_token_mono_s
        answered = submission.finish_reason is not None
        text = "".join(submission.texts)
        if answered:
            assert submission.finish_reason is not None and submission.served_by is not None
            submission.completion = Completion(
                request_id=submission.request_id,
                text=text,
                model_id=submission.model_id,
                arm=arm.name,
                assigned_version=arm.version,
                served_version=submission.served_by,
                unit_id=submission.unit_id,
                operation_id=snapshot.operation_id if snapshot else None,
                finish_reason=submission.finish_reason,
                prompt_tokens=submission.prompt_tokens,
                output_tokens=submission.output_tokens,
                queue_s=lease.admitted_mono_s - origin_s,
                first_token_s=(first_s if first_s is not None else end_s) - origin_s,
                total_s=end_s - origin_s,
            )
        failed = None if answered else _failure(error)
        self._record(
            RequestRecord(
                request_id=submission.request_id,
                model_id=submission.model_id,
                operation_id=snapshot.operation_id if snapshot else None,
                step=snapshot.step if snapshot else 0,
                route_epoch=snapshot.epoch if snapshot else 0,
                arm=arm.name,
                assigned_version=arm.version,
                served_version=submission.served_by,
                unit_id=submission.unit_id,
                fallback=submission.fallback,
                admitted_at_s=self._clock.wall_s() - (end_s - lease.admitted_mono_s),
                admitted_mono_s=lease.admitted_mono_s,
                queue_s=lease.admitted_mono_s - origin_s,
                first_token_s=None if first_s is None else first_s - origin_s,
                total_s=end_s - origin_s,
                prompt_tokens=submission.prompt_tokens,
                output_tokens=submission.output_tokens,
                finish_reason=submission.finish_reason.value if submission.finish_reason else None,
                error_type=failed[0] if failed else None,
                error_message=failed[1] if failed else None,
                prompt=str(submission.prompt) if self._record_text else None,
                output=text if self._record_text else None,
            )
        )


def _failure(error: BaseException | None) -> tuple[str, str]:
    if error is None or isinstance(error, GeneratorExit):
        return "Cancelled", "the caller stopped reading"
    if isinstance(error, RequestFailed):
        return type(error).__name__, str(error)
    name = "Cancelled" if type(error).__name__ == "CancelledError" else type(error).__name__
    return name, str(error) or "the caller went away"
