"""What a person wrote passes a hook before it is stored anywhere, the spool included."""

from __future__ import annotations

import logging
from collections.abc import Callable

from abswitch.domain import RequestRecord
from abswitch.store.items import Item, Row

log = logging.getLogger("abswitch.store")

Redact = Callable[[str], str | None]


class Redaction:
    """Applies a hook to the texts of requests. Runs in the writer's thread, so that a slow hook delays no token.

    A hook that raises, or answers with something other than text, costs the text: none is stored, and it is counted.

    Args:
        redact: text → what may be stored of it, or None for nothing; None as the hook itself stores texts as they are.

    Attributes:
        failures: texts that were not stored for that reason.
    """

    def __init__(self, redact: Redact | None) -> None:
        self._redact = redact
        self.failures = 0

    def __call__(self, item: Item) -> Item:
        """The item as it may be stored."""
        if self._redact is None or not isinstance(item, Row) or not isinstance(item.values, RequestRecord):
            return item
        record = item.values
        redacted = record._replace(
            prompt=self._redacted(record.prompt),
            output=self._redacted(record.output),
            error_message=self._redacted(record.error_message),
        )
        return Row(item.table, redacted)

    def _redacted(self, text: str | None) -> str | None:
        assert self._redact is not None, "asked only where there is a hook"
        if text is None:
            return None
        try:
            kept = self._redact(text)
            if kept is not None and not isinstance(kept, str):
                raise TypeError(f"returned {type(kept).__name__}; expected text or None")
        except Exception as error:
            self.failures += 1
            if self.failures == 1:  # never the text, nor a message that may quote it
                log.warning("the redaction hook raised %s; such texts are counted and not stored", type(error).__name__)
            return None
        return kept
