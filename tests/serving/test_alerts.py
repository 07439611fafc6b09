"""One alert per condition, told when it matters and not oftener."""

from __future__ import annotations

import pytest

from abswitch.clock import VirtualClock
from abswitch.errors import InvalidInput
from abswitch.serving.alerts import Alert, AlertBook, AlertState, Severity

KEY = ("error_rate", "bot", "v1")
COOLDOWN_S = 60.0


class Book:
    def __init__(self, history: int = 10) -> None:
        self.clock = VirtualClock()
        self.told: list[Alert] = []
        self.book = AlertBook(self.clock, tell=self.told.append, cooldown_s=COOLDOWN_S, history=history)

    def fire(self, severity: Severity = Severity.WARNING, version: str = "v1", value: float = 0.07) -> Alert:
        return self.book.fire("error_rate", severity, "too many", model_id="bot", version=version, value=value)

    @property
    def states(self) -> list[str]:
        return [f"{alert.severity} {alert.state}" for alert in self.told]


@pytest.fixture
def book() -> Book:
    return Book()


def test_an_alert_is_told_once_however_often_it_is_seen(book: Book) -> None:
    first = book.fire()
    for value in (0.08, 0.09):
        book.clock.advance(1)
        book.fire(value=value)
    assert book.states == ["warning firing"]
    (alert,) = book.book.all()
    assert (alert.alert_id, alert.value, alert.fired) == (first.alert_id, 0.09, 1)
    assert alert.started_at_s == first.started_at_s


def test_versions_have_alerts_of_their_own(book: Book) -> None:
    assert book.fire().alert_id != book.fire(version="v2").alert_id
    assert len(book.told) == 2


def test_a_rise_to_critical_is_told_even_when_the_warning_was_acknowledged(book: Book) -> None:
    warning = book.fire()
    book.book.acknowledge(warning.alert_id, "ann")
    critical = book.fire(Severity.CRITICAL)
    assert critical.alert_id == warning.alert_id
    assert (critical.state, critical.acknowledged_by) == (AlertState.FIRING, None)
    assert book.states == ["warning firing", "warning acknowledged", "critical firing"]
    assert book.fire(Severity.WARNING).severity is Severity.WARNING
    assert len(book.told) == 3


def test_resolved_and_told(book: Book) -> None:
    book.fire()
    book.clock.advance(5)
    over = book.book.resolve(KEY, "fine again")
    assert over is not None
    assert (over.state, over.reason) == (AlertState.RESOLVED, "fine again")
    assert over.resolved_at_s == over.started_at_s + 5
    assert book.states == ["warning firing", "warning resolved"]
    assert book.book.resolve(KEY, "again") is None
    assert book.book.active(KEY) is None


def test_flapping_within_the_cool_down_is_one_alert_and_two_messages(book: Book) -> None:
    first = book.fire()
    for _ in range(5):
        book.clock.advance(2)
        book.book.resolve(KEY, "fine")
        book.clock.advance(2)
        assert book.fire().alert_id == first.alert_id
    assert book.states == ["warning firing", "warning resolved"]
    assert book.book.all()[0].fired == 6


def test_what_came_back_and_stays_is_told_when_the_cool_down_is_over(book: Book) -> None:
    book.fire()
    book.book.resolve(KEY, "fine")
    book.clock.advance(1)
    for _ in range(int(COOLDOWN_S) + 1):
        book.fire()
        book.clock.advance(1)
    assert book.states == ["warning firing", "warning resolved", "warning firing"]
    book.book.resolve(KEY, "fine")
    assert book.states[-1] == "warning resolved"


def test_what_comes_back_worse_is_told_at_once(book: Book) -> None:
    book.fire()
    book.book.resolve(KEY, "fine")
    book.fire(Severity.CRITICAL)
    assert book.states[-1] == "critical firing"


def test_up_and_down_is_told_once_within_the_cool_down(book: Book) -> None:
    for second in range(int(COOLDOWN_S)):
        book.fire(Severity.CRITICAL if second % 2 else Severity.WARNING)
        book.clock.advance(1)
    assert book.states == ["warning firing", "critical firing"]
    book.fire(Severity.WARNING)
    book.clock.advance(1)
    book.fire(Severity.CRITICAL)
    assert book.states[2:] == ["critical firing"], "a rise after that time is told again"


def test_up_and_down_to_resolved_is_told_once_within_the_cool_down(book: Book) -> None:
    for _ in range(5):
        for severity in (Severity.WARNING, Severity.CRITICAL):
            book.fire(severity)
            book.clock.advance(1)
            book.book.resolve(KEY, "fine")
            book.clock.advance(1)
    assert book.states == ["warning firing", "warning resolved", "critical firing", "critical resolved"]
    for _ in range(int(COOLDOWN_S)):
        book.fire(Severity.CRITICAL)
        book.clock.advance(1)
    assert book.states[4:] == ["critical firing"], "it stayed"


def test_an_acknowledgement_holds_until_it_gets_worse_than_what_was_acknowledged(book: Book) -> None:
    critical = book.fire(Severity.CRITICAL)
    book.book.acknowledge(critical.alert_id, "ann")
    for severity in (Severity.WARNING, Severity.CRITICAL) * 100:
        book.clock.advance(1)
        alert = book.fire(severity)
        assert (alert.severity, alert.state, alert.acknowledged_by) == (severity, AlertState.ACKNOWLEDGED, "ann")
    assert book.states == ["critical firing", "critical acknowledged"]
    book.book.resolve(KEY, "fine")
    assert book.states[-1] == "critical resolved"


def test_what_gets_worse_than_acknowledged_within_the_cool_down_is_told_when_that_is_over(book: Book) -> None:
    alert = book.fire(Severity.CRITICAL)
    book.fire(Severity.WARNING)
    book.book.acknowledge(alert.alert_id, "ann")
    book.clock.advance(1)
    assert book.fire(Severity.CRITICAL).state is AlertState.FIRING
    assert book.states == ["critical firing", "warning acknowledged"], "people heard of it a second ago"
    book.clock.advance(COOLDOWN_S)
    book.fire(Severity.CRITICAL)
    book.fire(Severity.CRITICAL)
    assert book.states[2:] == ["critical firing"]


def test_after_the_cool_down_it_is_another_alert(book: Book) -> None:
    first = book.fire()
    book.book.resolve(KEY, "fine")
    book.clock.advance(COOLDOWN_S)
    assert book.fire().alert_id != first.alert_id
    assert len(book.book.all()) == 2


def test_the_wall_clock_may_jump(book: Book) -> None:
    book.fire()
    book.book.resolve(KEY, "fine")
    book.clock.jump_wall(-86_400)
    book.clock.advance(COOLDOWN_S)
    assert book.fire().fired == 1


def test_acknowledging(book: Book) -> None:
    alert = book.fire()
    seen = book.book.acknowledge(alert.alert_id, "ann")
    assert (seen.state, seen.acknowledged_by, seen.is_active) == (AlertState.ACKNOWLEDGED, "ann", True)
    assert book.book.acknowledge(alert.alert_id, "bob") == seen
    assert book.fire().state is AlertState.ACKNOWLEDGED
    assert book.states == ["warning firing", "warning acknowledged"]
    book.book.resolve(KEY, "fine")
    with pytest.raises(InvalidInput, match="there is none"):
        book.book.acknowledge(alert.alert_id)
    with pytest.raises(InvalidInput, match="alert_id: got 'nonsense'"):
        book.book.acknowledge("nonsense")


def test_the_history_is_bounded_and_drops_what_is_over_first() -> None:
    book = Book(history=3)
    lasting = book.fire(version="lasting")
    for number in range(5):
        book.fire(version=f"v{number}")
        book.book.resolve(("error_rate", "bot", f"v{number}"), "fine")
    kept = [alert.version for alert in book.book.all()]
    assert kept == ["lasting", "v3", "v4"]
    assert book.book.active(lasting.key) == lasting
    for number in range(5, 9):  # even active ones, once there are too many of them
        book.fire(version=f"v{number}")
    assert [alert.version for alert in book.book.all()] == ["v6", "v7", "v8"]
    assert book.book.resolve(lasting.key, "nobody remembers") is None


def test_an_alert_reads_well(book: Book) -> None:
    assert str(book.fire()) == "[warning] firing error_rate of bot:v1: too many"
    assert book.told[0].to_dict()["severity"] == "warning"
