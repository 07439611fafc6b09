"""`Witness`: what clients see of their requests, noted while they run, for `check_history`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from abswitch.domain import TokenChunk
from abswitch.errors import LoadFailed, NoActiveVersion, QueueFull, QueueTimeout
from abswitch.testing.history import HistoryReport, check_history


class Witness:
    """Reads streams for clients and notes how each ended. One loop may have many clients.

    Attributes:
        sent: ids in order of sending.
        answered: (id, text) of the whole answers.
        failed: id → the error, of requests that ended in one after they were admitted.
        refused: id → the error, of requests that were turned away before.
        left: ids whose clients went away, by themselves or because they were cancelled.
        streams: id → chunks as they came.
    """

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.answered: list[tuple[str, str]] = []
        self.failed: dict[str, Exception] = {}
        self.refused: dict[str, Exception] = {}
        self.left: set[str] = set()
        self.streams: dict[str, list[TokenChunk]] = {}

    async def read(
        self, request_id: str, stream: AsyncGenerator[TokenChunk, None], *, leave_after: int | None = None
    ) -> str | None:
        """Read an answer to its end.

        Args:
            request_id: the id the request was sent with.
            stream: e.g. of `engine.stream(prompt, request_id=request_id)`.
            leave_after: go away after so many chunks; None (the default) stays.

        Returns:
            The text; None when the request failed, was refused, or its client left.
        """
        self.sent.append(request_id)
        chunks = self.streams[request_id] = []
        try:
            async with aclosing(stream) as source:
                async for chunk in source:
                    chunks.append(chunk)
                    if leave_after is not None and len(chunks) >= leave_after and chunk.finish_reason is None:
                        self.left.add(request_id)
                        return None
        except (LoadFailed, NoActiveVersion, QueueFull, QueueTimeout) as error:
            self.refused[request_id] = error
            return None
        except Exception as error:
            self.failed[request_id] = error
            return None
        except BaseException:
            self.left.add(request_id)
            raise
        text = "".join(chunk.text for chunk in chunks)
        self.answered.append((request_id, text))
        return text

    def check(self, requests: Any, routes: Any, **more: Any) -> HistoryReport:
        """Hold the recorded rows against what was noted; arguments as in `check_history`."""
        return check_history(requests, routes, **(self.seen() | more))

    def seen(self) -> dict[str, Any]:
        """What was noted, as arguments of `check_history`."""
        return {
            "sent": frozenset(self.sent),
            "answered": tuple(self.answered),
            "failed": frozenset(self.failed),
            "refused": frozenset(self.refused),
            "left": frozenset(self.left),
            "streams": {name: tuple(chunks) for name, chunks in self.streams.items()},
        }
