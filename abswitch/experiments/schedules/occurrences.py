"""When a cron expression comes, in a time zone: pure, instants in seconds since the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from abswitch.errors import InvalidInput

_COUNTED = 10_000
_FIELDS = 5


class Due(NamedTuple):
    """What came since the last look.

    Attributes:
        latest_s: the latest occurrence.
        many: how many there were; counting ends at 10,000.
    """

    latest_s: float
    many: int


def check_cron(cron: str) -> None:
    """Whether it is a cron expression that comes at all.

    Raises:
        InvalidInput: not five fields of crontab(5), or a date that no year has.
    """
    from cronsim import CronSim, CronSimError

    allowed = "five fields as in crontab(5), minute hour day month weekday, e.g. '30 2 * * *'"
    if len(cron.split()) != _FIELDS:
        raise InvalidInput("cron", cron, allowed)
    try:
        next(CronSim(cron, datetime.now(UTC)))
    except CronSimError as error:
        raise InvalidInput("cron", cron, f"{allowed} ({str(error).lower()})") from error
    except StopIteration:
        raise InvalidInput("cron", cron, f"{allowed}; this one does not come in the next 50 years") from None


def check_zone(zone: str) -> None:
    """Whether this host knows the time zone.

    Raises:
        InvalidInput: it does not.
    """
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidInput("time_zone", zone, "a time zone such as Europe/Berlin or UTC") from error


def occurrences(cron: str, zone: str, after_s: float) -> Iterator[float]:
    """Every occurrence after an instant, in order, each once.

    As Debian's cron: a time of day that the clocks skip comes right after the gap, one that they repeat comes the first
    time only. Expressions with `*` first in the minute or the hour follow the time that passes instead.

    Args:
        cron, zone: as `check_cron` and `check_zone` take them.
        after_s: seconds since the epoch; an occurrence at exactly this instant is not given.
    """
    from cronsim import CronSim

    last_s = after_s
    for moment in CronSim(cron, datetime.fromtimestamp(after_s, ZoneInfo(zone))):
        at_s = moment.timestamp()
        if at_s > last_s:  # two times within one gap come at its end both, and a fold leads back
            last_s = at_s
            yield at_s


def next_after(cron: str, zone: str, after_s: float) -> float | None:
    """The next occurrence; None where none comes in 50 years."""
    return next(occurrences(cron, zone, after_s), None)


def due_between(cron: str, zone: str, after_s: float, until_s: float) -> Due | None:
    """What came after one instant, up to and including another; None where nothing did."""
    latest_s, count = after_s, 0
    for at_s in occurrences(cron, zone, after_s):
        if at_s > until_s:
            break
        latest_s, count = at_s, count + 1
        if count == _COUNTED:
            return Due(max(latest_s, _latest_before(cron, zone, until_s)), count)
    return Due(latest_s, count) if count else None


def _latest_before(cron: str, zone: str, until_s: float) -> float:
    """The latest occurrence up to an instant, without going through all that came before."""
    from cronsim import CronSim

    end = datetime.fromtimestamp(until_s, ZoneInfo(zone)) + timedelta(minutes=1)
    for moment in CronSim(cron, end, reverse=True):
        if moment.timestamp() <= until_s:
            return moment.timestamp()
    return 0.0


def in_zone(at_s: float, zone: str) -> str:
    """For people: `Sun 2026-03-29 03:00 CEST`."""
    return f"{datetime.fromtimestamp(at_s, ZoneInfo(zone)):%a %Y-%m-%d %H:%M %Z}"
