"""Which web addresses are taken, where alerts are sent and in the settings alike."""

from __future__ import annotations

from urllib.parse import urlsplit

from abswitch.errors import InvalidInput


def web_address(field: str, value: object) -> str:
    """An http or https address, with a host, and with a port that exists where it names one.

    Raises:
        InvalidInput: anything else.
    """
    if not isinstance(value, str) or not _names_a_host(value):
        raise InvalidInput(field, value, "an address, http://… or https://…")
    return value


def _names_a_host(address: str) -> bool:
    if not address.isprintable() or " " in address:
        return False
    try:
        parts = urlsplit(address)
        # Asked for because it is only then that a port that is no number, or too large, is noticed.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
