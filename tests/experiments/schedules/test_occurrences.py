"""Cron times in zones: clocks that skip an hour and clocks that repeat one, held against a minute-by-minute reading."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.errors import InvalidInput
from abswitch.experiments.schedules.occurrences import (
    check_cron,
    check_zone,
    due_between,
    in_zone,
    next_after,
    occurrences,
)

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def first(n: int, cron: str, zone: str, after: str) -> list[str]:
    return [in_zone(one, zone) for one in islice(occurrences(cron, zone, at(after, zone)), n)]


def test_a_time_that_the_clocks_skip_comes_right_after_the_gap() -> None:
    assert first(3, "30 2 * * *", BERLIN, "2026-03-28T12:00") == [
        "Sun 2026-03-29 03:00 CEST",
        "Mon 2026-03-30 02:30 CEST",
        "Tue 2026-03-31 02:30 CEST",
    ]


def test_two_times_within_one_gap_come_once() -> None:
    assert first(3, "0,30 2 * * *", BERLIN, "2026-03-28T12:00") == [
        "Sun 2026-03-29 03:00 CEST",
        "Mon 2026-03-30 02:00 CEST",
        "Mon 2026-03-30 02:30 CEST",
    ]


def test_a_time_that_the_clocks_repeat_comes_the_first_time_only() -> None:
    assert first(2, "30 2 * * *", BERLIN, "2026-10-24T12:00") == [
        "Sun 2026-10-25 02:30 CEST",
        "Mon 2026-10-26 02:30 CET",
    ]


@pytest.mark.parametrize("minute", [0, 15, 29, 30, 31, 59])
def test_a_look_during_the_repeated_hour_does_not_find_it_again(minute: int) -> None:
    second_pass = datetime(2026, 10, 25, 2, minute, tzinfo=ZoneInfo(BERLIN), fold=1).timestamp()
    assert in_zone(next_after("30 2 * * *", BERLIN, second_pass) or 0.0, BERLIN) == "Mon 2026-10-26 02:30 CET"


def test_every_hour_follows_the_time_that_passes() -> None:
    assert first(4, "30 * * * *", BERLIN, "2026-10-25T01:00") == [
        "Sun 2026-10-25 01:30 CEST",
        "Sun 2026-10-25 02:30 CEST",
        "Sun 2026-10-25 02:30 CET",
        "Sun 2026-10-25 03:30 CET",
    ]
    assert first(3, "30 * * * *", BERLIN, "2026-03-29T01:00") == [
        "Sun 2026-03-29 01:30 CET",
        "Sun 2026-03-29 03:30 CEST",
        "Sun 2026-03-29 04:30 CEST",
    ]


def test_half_an_hour_is_a_gap_too() -> None:
    """Lord Howe Island moves by 30 minutes."""
    assert first(2, "15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00") == [
        "Sun 2026-10-04 02:30 +11",
        "Mon 2026-10-05 02:15 +11",
    ]


@pytest.mark.parametrize("zone", ["UTC", BERLIN, "America/Sao_Paulo", "Australia/Lord_Howe", "Asia/Kolkata"])
@given(
    minute=st.integers(0, 59), hour=st.integers(0, 23), day=st.integers(0, 364), second=st.floats(0.0, 86_399.0)
)  # fmt: skip
def test_each_day_has_its_time_once(zone: str, minute: int, hour: int, day: int, second: float) -> None:
    """Whatever the zone does, a daily schedule comes once for each date, in order, and never at or before the look."""
    after_s = datetime(2026, 1, 1, tzinfo=UTC).timestamp() + 86_400.0 * day + second
    found = list(islice(occurrences(f"{minute} {hour} * * *", zone, after_s), 4))
    assert found[0] > after_s
    dates = [datetime.fromtimestamp(one, ZoneInfo(zone)).date() for one in found]
    assert dates == [dates[0] + timedelta(days=n) for n in range(4)]
    local = [datetime.fromtimestamp(one, ZoneInfo(zone)) for one in found]
    assert all((one.hour, one.minute) >= (hour, minute) for one in local), "at its time, or after a gap"
    assert sum((one.hour, one.minute) != (hour, minute) for one in local) <= 1, "and later in a gap only"


def test_an_instant_is_not_its_own_next() -> None:
    at_s = at("2026-06-01T02:30")
    assert next_after("30 2 * * *", "UTC", at_s) == at_s + 86_400.0
    assert next_after("30 2 * * *", "UTC", at_s - 0.001) == at_s


def test_what_came_between_two_looks_is_counted() -> None:
    after_s, until_s = at("2026-06-01T00:00"), at("2026-06-04T02:30")
    due = due_between("30 2 * * *", "UTC", after_s, until_s)
    assert due is not None
    assert (due.latest_s, due.many) == (until_s, 4)
    assert due_between("30 2 * * *", "UTC", after_s, after_s + 60.0) is None
    assert due_between("30 2 * * *", "UTC", until_s, after_s) is None, "a clock that went back"


@pytest.mark.parametrize(
    ("cron", "latest"),
    [("* * * * *", "2026-06-15T12:34"), ("* * * 1 *", "2026-01-31T23:59"), ("*/2 3 * * *", "2026-06-15T03:58")],
)
def test_the_latest_is_right_after_years_of_nobody_looking(cron: str, latest: str) -> None:
    due = due_between(cron, BERLIN, 0.0, at("2026-06-15T12:34:30", BERLIN))
    assert due is not None
    assert due.latest_s == at(latest, BERLIN)
    assert due.many == 10_000


@pytest.mark.parametrize(
    "cron",
    ["", "61 * * * *", "* * * *", "* * * * * *", "@daily", "0 0 31 2 *", "a b c d e", "*/0 * * * *", "5-1 * * * *"],
)
def test_what_is_no_cron_expression_says_what_is(cron: str) -> None:
    with pytest.raises(InvalidInput, match="five fields"):
        check_cron(cron)


def test_a_date_that_never_comes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="does not come"):
        check_cron("* * */20 * 1L")


@pytest.mark.parametrize("cron", ["0 3 * * MON-FRI", "*/15 8-18 * * *", "0 0 29 2 *", "0 4 L * *", "0 4 * * 1#1"])
def test_cron_expressions_of_every_kind(cron: str) -> None:
    check_cron(cron)
    assert next_after(cron, "UTC", at("2026-06-01T00:00")) is not None


@pytest.mark.parametrize("zone", ["", "Mars/Phobos", "Europe", "../etc/passwd", "europe/berlin\n"])
def test_an_unknown_zone_is_named(zone: str) -> None:
    with pytest.raises(InvalidInput, match="Europe/Berlin"):
        check_zone(zone)
