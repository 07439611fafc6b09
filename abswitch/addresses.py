"""Which web addresses are taken, where alerts are sent and in the settings alike."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from abswitch.errors import InvalidInput

_CREDENTIALS = re.compile(r"\A([A-Za-z][A-Za-z0-9+.-]*://)?.*@", re.DOTALL)


def web_address(field: str, value: object) -> str:
    """An http or https address, with a host, with a port that exists where it names one, and without user or password.

    Those would have to be sent as a header; in the address itself, they make every request fail.

    Raises:
        InvalidInput: anything else; a user and password are not shown.
    """
    if not isinstance(value, str) or not _names_a_host(value):
        shown = without_credentials(value) if isinstance(value, str) else value
        raise InvalidInput(field, shown, "an address, http://… or https://…, without user or password")
    return value


def without_credentials(address: str) -> str:
    """The address as an error may show it, also where it is none: what stands before an `@` is hidden."""
    return _CREDENTIALS.sub(r"\1(hidden)@", address)


def _names_a_host(address: str) -> bool:
    if not address.isprintable() or " " in address:
        return False
    try:
        parts = urlsplit(address)
        # Asked for because it is only then that a port that is no number, or too large, is noticed.
        return (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
        )
    except ValueError:
        return False
