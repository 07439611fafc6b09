"""`Recording`: the part of the engine's facade about evidence: reading it, exporting it, adding to it later."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abswitch import checks
from abswitch.clock import Clock
from abswitch.domain import ScoreRecord
from abswitch.errors import InvalidInput, ScorerError
from abswitch.machinery import Machinery
from abswitch.scoring import Sample, checked
from abswitch.serving.loop import EngineLoop
from abswitch.store.recorder import Recorder

if TYPE_CHECKING:
    import pandas as pd


class Recording:
    """Evidence of a `SwitchingEngine`, which is one of these."""

    _parts: Machinery
    _loop: EngineLoop
    _clock: Clock
    store: Recorder

    def _refuse_closed(self) -> None:
        raise NotImplementedError("the engine says whether it was shut down")

    def query(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Read the evidence with SQL; everything recorded so far is included. See docs/schema.md for the tables.

        Args:
            sql: one reading statement.
            parameters: fill `?` (a sequence) or `$name` (a mapping).

        Raises:
            InvalidInput: not one reading statement.
            StoreError: it failed.
        """
        return self.store.query(sql, parameters)

    def table(self, name: str) -> pd.DataFrame:
        """A whole table of docs/schema.md, e.g. `engine.table("requests")`.

        Raises:
            InvalidInput: there is none of that name; lists them.
        """
        return self.store.table(name)

    def export(self, source: str, path: Path | str) -> Path:
        """Write a table, or what a SELECT finds, to a `.parquet`, `.csv` or `.csv.gz` file; returns its path.

        Raises:
            InvalidInput: no such table, not one reading statement, or another ending.
            StoreError: the file cannot be written.
        """
        return self.store.export(source, path)

    def record_score(self, request_id: str, name: str, value: float, *, comment: str | None = None) -> None:
        """Add a score that came late, under a scorer's name; of several by the same name the latest counts.

        Args:
            request_id: of the answer; it need not have been recorded yet.
            value: a finite number, True or False.

        Raises:
            InvalidInput: a malformed argument.
        """
        self._add_score(request_id, name, value, "late", comment)

    def feedback(self, request_id: str, value: float, *, name: str = "feedback", comment: str | None = None) -> None:
        """Add a person's judgement of an answer, e.g. `engine.feedback(completion.request_id, True)`.

        Raises:
            InvalidInput: as in `record_score`.
        """
        self._add_score(request_id, name, value, "human", comment)

    def _add_score(self, request_id: str, name: str, value: float, source: str, comment: str | None) -> None:
        self._refuse_closed()
        for field, text in (("request_id", request_id), ("comment", comment)):
            if not (isinstance(text, str) and text) and not (field == "comment" and text is None):
                raise InvalidInput(field, text, "a non-empty string")
        checks.name("name", name)
        number = _finite(value)
        score = ScoreRecord(request_id, name, number, None, self._clock.wall_s(), source, comment)
        self.store.score(score)
        self._loop.post(self._parts.tally.score, score)

    async def score_again(self, answers: Iterable[tuple[Sample, Collection[str]]]) -> None:
        """Have answers scored that lack scores: those that a killed process had not written yet.

        Args:
            answers: each with the names of the scorers to run; of several scores by one name the latest counts.
        """

        async def submit() -> None:
            for sample, names in answers:
                await self._parts.grader.room()
                self._parts.grader.submit(sample, names)

        await self._loop.call(submit())

    async def scorers_keep_up(self) -> None:
        """Wait while so many answers wait for slow scorers that further ones might stay unscored; at once otherwise.

        For programs that send many requests of their own accord, as `run_ab_test` does; no request waits for it.
        """
        if not self._parts.grader.has_room:
            await self._loop.call(self._parts.grader.room())

    async def scored(self) -> None:
        """Wait until every answer given so far has its scores, or stays without them."""
        await self._loop.call(self._parts.grader.caught_up())


def _finite(value: object) -> float:
    try:
        number = checked(value)
    except ScorerError:
        number = None
    if number is None:
        raise InvalidInput("value", value, "a finite number, True or False")
    return number
