"""`SwitchHandle`: one switch as its caller holds it, on whatever loop that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from abswitch.errors import SwitchFailed
from abswitch.rollout import operation as ops
from abswitch.rollout.operation import Operation, Phase
from abswitch.serving.status import OperationStatus


class Switches(Protocol):
    """What a handle asks of the engine; see `SwitchingEngine` for each."""

    def operation_status(self, operation_id: str) -> OperationStatus: ...

    async def wait_for_switch(self, operation_id: str, until: Callable[[Operation], bool]) -> None: ...

    async def conclude_switch(
        self, operation_id: str, *, promote: bool, reason: str, version: str | None = None
    ) -> None: ...

    async def tell_switch(self, operation_id: str, event: ops.Event) -> None: ...

    async def abort_switch(self, operation_id: str) -> bool: ...


class SwitchHandle:
    """A switch under way, as returned by `start_switch`."""

    def __init__(self, engine: Switches, operation_id: str) -> None:
        self._engine = engine
        self.operation_id = operation_id

    @property
    def moved_by(self) -> str | None:
        """The switch that moves the traffic when it is promoted: itself."""
        return self.operation_id

    @property
    def status(self) -> OperationStatus:
        """How it stands now."""
        return self._engine.operation_status(self.operation_id)

    async def serving(self) -> OperationStatus:
        """Wait until traffic, or its copies, reach the candidate.

        Raises:
            SwitchFailed: it ended before that; the message says why and what serves.
        """
        status = await self._wait(
            lambda o: (o.share > 0 or o.mirror > 0) and o.phase not in (Phase.SHIFTING, Phase.PROMOTING)
        )
        if status.phase in (Phase.FAILED, Phase.ABORTED, Phase.ROLLED_BACK):
            stays = None if status.stable in status.candidates else status.stable  # it was being deployed itself
            raise SwitchFailed(status.operation_id, status.phase, status.reason, status.winner or stays)
        return status

    async def done(self) -> OperationStatus:
        """Wait until it ended, however it ended; `status.phase` says how."""
        return await self._wait(lambda o: o.phase.is_final)

    async def promote(self, reason: str = "promoted by hand", *, version: str | None = None) -> OperationStatus:
        """Make the candidate the active version; returns when the old one has finished what it began.

        New requests go to the candidate long before that, within milliseconds of the call.

        Args:
            version: of several candidates, the one meant, by name or alias; the switch's target by default.
        """
        await self._engine.conclude_switch(self.operation_id, promote=True, reason=reason, version=version)
        return await self.done()

    async def keep(self, reason: str = "kept by hand") -> OperationStatus:
        """End the switch and keep the stable version; returns when the candidate has finished what it began."""
        await self._engine.conclude_switch(self.operation_id, promote=False, reason=reason)
        return await self.done()

    async def pause(self, reason: str = "paused by hand") -> None:
        """Hold the shares as they are; the stage's time starts anew on `resume`."""
        await self._engine.tell_switch(self.operation_id, ops.Pause(reason=reason))

    async def resume(self) -> None:
        """Go on after `pause`."""
        await self._engine.tell_switch(self.operation_id, ops.Resume())

    async def abort(self) -> bool:
        """Back to the stable version; False when it had already ended."""
        return await self._engine.abort_switch(self.operation_id)

    async def _wait(self, until: Callable[[Operation], bool]) -> OperationStatus:
        await self._engine.wait_for_switch(self.operation_id, until)
        return self.status

    def __repr__(self) -> str:
        return f"<switch {self.status}>"
