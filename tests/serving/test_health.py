"""The monitor on the virtual clock: what it finds, whom it tells, and what it never says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio

from abswitch.domain import RequestRecord
from abswitch.errors import InvalidInput, StreamBroken, UnknownVersion
from abswitch.rollout.limits import AlertThresholds, Limit
from abswitch.rollout.operation import Phase
from abswitch.serving.alerts import Alert, AlertState, Severity
from abswitch.serving.backoff import RestartPolicy
from abswitch.serving.findings import HealthPolicy, HealthState
from abswitch.serving.scripted import Gate
from abswitch.serving.transition import Lease
from tests.patience import PATIENCE_S
from tests.serving.harness import MODEL, Shell, eventually

HANG_FOUND_S = 10.0
"""What the defaults promise: a hung engine is found within that."""


@pytest_asyncio.fixture
async def shell() -> AsyncIterator[Shell]:
    made = Shell()
    made.health.start()
    yield made
    await made.close()


def row(
    shell: Shell, version: str = "v1", *, error: str | None = None, total_s: float = 0.1, first_s: float = 0.01
) -> RequestRecord:
    return RequestRecord(
        request_id="r",
        model_id=MODEL,
        operation_id=None,
        step=0,
        route_epoch=1,
        arm="stable",
        assigned_version=version,
        served_version=version,
        unit_id="u",
        fallback=False,
        admitted_at_s=shell.clock.wall_s(),
        admitted_mono_s=shell.clock.monotonic_s(),
        queue_s=0.0,
        first_token_s=None if error else first_s,
        total_s=total_s,
        prompt_tokens=3,
        output_tokens=0 if error else 5,
        finish_reason=None if error else "stop",
        error_type=error,
        error_message=error,
        prompt=None,
        output=None,
    )


def feed(shell: Shell, count: int, version: str = "v1", **fields: object) -> None:
    for _ in range(count):
        shell.health.request(row(shell, version, **fields))  # type: ignore[arg-type]


def active(shell: Shell, metric: str) -> Alert:
    return next(alert for alert in shell.desk.active() if alert.metric == metric)


def ever(shell: Shell, metric: str) -> Alert:
    return next(alert for alert in shell.desk.book.all() if alert.metric == metric)


def metrics(shell: Shell) -> list[str]:
    return [alert.metric for alert in shell.desk.active()]


async def hang(shell: Shell, version: str) -> Gate:
    """Let the version's instance take requests and give no more tokens, its process alive."""
    gate = Gate()
    shell.instance(version).token_gate = gate
    return gate


# --- hung engines -----------------------------------------------------------------------------------------------------


async def test_a_hung_engine_under_load_is_found_within_ten_seconds_and_its_requests_are_answered(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.pass_time(1)
    hung = shell.instance("v1")
    await hang(shell, "v1")
    asked = asyncio.create_task(shell.ask())
    await shell.pass_time(HANG_FOUND_S)
    assert await asked == "I am v1"
    assert shell.instance("v1") is not hung
    assert shell.requests[-1].fallback
    (found,) = [alert for alert in shell.desk.book.all() if alert.metric == "hung"]
    assert found.severity is Severity.CRITICAL
    assert "1 request(s) under way" in found.message


async def test_an_idle_hung_engine_is_found_within_ten_seconds(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.pass_time(5)
    hung = shell.instance("v1")
    await hang(shell, "v1")
    await shell.pass_time(HANG_FOUND_S)
    assert hung.counts.stops == 1
    assert shell.instance("v1") is not hung
    assert await shell.ask() == "I am v1"
    assert not shell.requests[-1].fallback


async def test_a_dead_idle_engine_is_found_by_the_next_probe(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.pass_time(1)
    dead = shell.instance("v1")
    dead.die("killed")
    await shell.pass_time(4)
    assert shell.instance("v1") is not dead
    assert shell.desk.book.all()[-1].metric == "lost"


async def test_a_stream_that_began_ends_with_an_explicit_error_when_its_engine_hangs(shell: Shell) -> None:
    await shell.deploy("v1")
    gate = Gate()
    shell.instance("v1").token_gate = gate
    asked = asyncio.create_task(shell.ask())
    await eventually(lambda: gate.waiting == 1)
    gate.let(1)
    await shell.pass_time(2 + HANG_FOUND_S)
    with pytest.raises(StreamBroken, match="it hangs") as broken:
        await asked
    assert broken.value.text == "I "


async def test_probes_leave_no_evidence(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.pass_time(60)
    probes = [one for one in shell.instance("v1").requests if one.request_id.startswith("probe")]
    assert 15 <= len(probes) <= 40
    assert {one.sampling.max_tokens for one in probes} == {1}
    assert shell.requests == []
    assert shell.transitions.in_flight() == ()
    assert shell.health.report().version("v1").requests == 0


async def test_tokens_for_others_are_progress_enough(shell: Shell) -> None:
    await shell.deploy("v1")
    gate = await hang(shell, "v1")
    slow = asyncio.create_task(shell.ask())
    served = shell.instance("v1")
    for _ in range(30):  # the queue is long: now and then somebody gets a token
        await shell.pass_time(1)
        gate.let(1)
    assert shell.instance("v1") is served
    gate.open()
    await slow


async def test_a_slow_first_answer_within_the_time_is_no_hang(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.pass_time(1)
    gate = await hang(shell, "v1")
    asked = asyncio.create_task(shell.ask())
    await shell.pass_time(6)
    gate.open()
    assert await asked == "I am v1"
    assert shell.desk.book.all() == ()


async def test_a_process_that_stood_still_blames_nobody(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.pass_time(3)
    gate = await hang(shell, "v1")
    await shell.pass_time(3)  # a probe is out
    shell.clock.advance(3600)  # the laptop's lid was closed
    await shell.pass_time(1)
    gate.open()
    await shell.pass_time(3)
    assert shell.desk.book.all() == ()


async def test_a_hung_candidate_rolls_back_and_its_requests_are_answered_by_the_stable_version(shell: Shell) -> None:
    await shell.deploy("v1")
    operation = await shell.split("v2", 100.0)
    await hang(shell, "v2")
    asked = asyncio.create_task(shell.ask())
    await shell.pass_time(HANG_FOUND_S)
    assert await asked == "I am v1"
    ended = await shell.until(operation, Phase.ROLLED_BACK)
    assert "it hangs" in ended.reason
    assert shell.registry.active_version(MODEL) == "v1"


async def test_the_alert_of_a_hung_engine_is_resolved_when_it_generates_again(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.pass_time(1)
    await hang(shell, "v1")
    await shell.pass_time(HANG_FOUND_S + 10)
    (found,) = shell.desk.book.all()
    assert found.state is AlertState.RESOLVED
    assert found.reason == "it generates again"


async def test_an_engine_that_hangs_at_every_start_is_given_up_for_the_last_good_version() -> None:
    shell = Shell(restarts=RestartPolicy(max_restarts=2, initial_s=0.1))
    shell.health.start()
    await shell.deploy("v1")
    await shell.deploy("v2")
    for _ in range(4):
        if shell.registry.active_version(MODEL) == "v1":
            break
        await hang(shell, "v2")
        await shell.pass_time(HANG_FOUND_S + 1)
    assert shell.registry.active_version(MODEL) == "v1"
    assert await shell.ask() == "I am v1"
    await shell.close()


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_without_evidence_nothing_is_healthy_and_nothing_is_broken(shell: Shell) -> None:
    assert shell.health.report().state is HealthState.UNKNOWN
    await shell.deploy("v1")
    await shell.pass_time(10)
    health = shell.health.report().version("v1")
    assert health.state is HealthState.UNKNOWN
    assert health.error_rate is None
    assert health.latency_p95_ms is None
    assert "answers when asked" in health.reason
    assert metrics(shell) == []


async def test_figures_that_are_no_numbers_are_no_evidence(shell: Shell) -> None:
    await shell.deploy("v1")
    feed(shell, 30, total_s=math.nan, first_s=math.inf)
    await shell.pass_time(2)
    health = shell.health.report().version("v1")
    assert (health.latency_p95_ms, health.first_token_p95_ms) == (None, None)
    assert next(f for f in health.findings if f.metric == "latency_p95").state is HealthState.UNKNOWN
    assert metrics(shell) == []


async def test_one_failure_of_one_request_convicts_nobody(shell: Shell) -> None:
    await shell.deploy("v1")
    feed(shell, 1, error="RequestFailed")
    await shell.pass_time(5)
    assert shell.health.report().version("v1").state is HealthState.UNKNOWN
    assert metrics(shell) == []


async def test_a_warning_tells_and_does_not_act(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.deploy("v2")
    feed(shell, 93, "v2")
    feed(shell, 7, "v2", error="RequestFailed")
    await shell.pass_time(2)
    alert = active(shell, "error_rate")
    assert (alert.severity, alert.value, alert.threshold) == (Severity.WARNING, 0.07, 0.05)
    assert shell.registry.active_version(MODEL) == "v2"


async def test_a_critical_breach_outside_an_operation_goes_back_to_the_last_good_version(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.deploy("v2")
    feed(shell, 40, "v2", error="RequestFailed")
    await shell.pass_time(3)
    assert shell.registry.active_version(MODEL) == "v1"
    assert await shell.ask() == "I am v1"
    assert ever(shell, "error_rate").version == "v2"


async def test_the_last_good_version_is_not_left_again_within_the_cool_down(shell: Shell) -> None:
    for version in ("v1", "v2", "v3"):
        await shell.deploy(version)
    feed(shell, 40, "v3", error="RequestFailed")
    await shell.pass_time(3)
    assert shell.registry.active_version(MODEL) == "v2"
    feed(shell, 40, "v2", error="RequestFailed")
    await shell.pass_time(60)
    assert shell.registry.active_version(MODEL) == "v2"
    await shell.pass_time(300 - 60)
    feed(shell, 40, "v2", error="RequestFailed")
    await shell.pass_time(3)
    assert shell.registry.active_version(MODEL) == "v1"


async def test_a_critical_breach_by_a_candidate_rolls_back(shell: Shell) -> None:
    await shell.deploy("v1")
    operation = await shell.split("v2")
    feed(shell, 40, "v1")
    feed(shell, 40, "v2", total_s=12.0)
    await shell.pass_time(2)
    ended = await shell.until(operation, Phase.ROLLED_BACK)
    assert ever(shell, "latency_p95").operation_id == operation
    assert "40 of 40 answers" in ended.reason


async def test_a_breach_before_a_candidate_has_traffic_is_acted_on_once_it_has(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.readiness.prove(shell.registry.get(MODEL, "v2"))
    gate = Gate()
    shell.backend._configure = lambda instance: setattr(instance, "load_gate", gate)
    operation = await shell.start("v2", "ab_test", {"arms": {"v2": 40, "v3": 10}})
    await eventually(lambda: gate.waiting == 1)
    named = Lease("named", (MODEL, "v2"), "pinned", "u", 0.0)  # of a request that names the version itself
    shell.transitions.acquire(named)
    feed(shell, 40, "v2", error="RequestFailed")
    await shell.pass_time(3)
    assert active(shell, "error_rate").version == "v2"
    assert shell.switcher.operation(operation).phase is Phase.LOADING, "nobody meets it yet"
    shell.transitions.release(named)
    gate.open()
    await shell.until(operation, Phase.EVALUATING)
    await shell.pass_time(1)
    assert shell.switcher.operation(operation).phase is Phase.ROLLED_BACK


async def test_a_breach_by_the_stable_version_does_not_end_the_operation(shell: Shell) -> None:
    await shell.deploy("v1")
    operation = await shell.split("v2")
    feed(shell, 40, "v1", error="RequestFailed")
    feed(shell, 40, "v2")
    await shell.pass_time(3)
    assert shell.switcher.operation(operation).phase is Phase.EVALUATING
    assert active(shell, "error_rate").operation_id == operation


async def test_an_earlier_attempt_is_not_held_against_a_candidate(shell: Shell) -> None:
    await shell.deploy("v1")
    first = await shell.split("v2")
    feed(shell, 40, "v2", error="RequestFailed")
    await shell.pass_time(2)
    await shell.until(first, Phase.ROLLED_BACK)
    second = await shell.split("v2")
    await shell.pass_time(3)
    assert shell.switcher.operation(second).phase is Phase.EVALUATING


async def test_without_automatic_rollback_a_breach_only_tells() -> None:
    shell = Shell(health=HealthPolicy(acts=False))
    shell.health.start()
    await shell.deploy("v1")
    await shell.deploy("v2")
    feed(shell, 40, "v2", error="RequestFailed")
    await shell.pass_time(3)
    assert shell.registry.active_version(MODEL) == "v2"
    assert active(shell, "error_rate").severity is Severity.CRITICAL
    await shell.close()


async def test_requests_lost_with_an_instance_warn_but_are_the_restarts_business(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.deploy("v2")
    feed(shell, 40, "v2", error="StreamBroken")
    await shell.pass_time(3)
    assert shell.registry.active_version(MODEL) == "v2"
    assert active(shell, "error_rate").severity is Severity.WARNING
    health = shell.health.report().version("v2")
    assert (health.errors, health.lost, health.error_rate) == (40, 40, 1.0)


async def test_an_alert_needs_evidence_to_be_resolved(shell: Shell) -> None:
    await shell.deploy("v1")
    feed(shell, 40, error="RequestFailed")
    await shell.pass_time(2)
    assert metrics(shell) == ["error_rate"]
    await shell.pass_time(120)  # the window is empty: no data is no recovery
    assert metrics(shell) == ["error_rate"]
    feed(shell, 40)
    await shell.pass_time(2)
    assert metrics(shell) == []


async def test_alerts_of_a_version_end_when_it_no_longer_serves(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.deploy("v2")
    feed(shell, 93, "v2")
    feed(shell, 7, "v2", error="RequestFailed")
    await shell.pass_time(2)
    await shell.deploy("v3")
    await shell.pass_time(2)
    assert metrics(shell) == []
    assert shell.desk.book.all()[-1].reason == "the version no longer serves"


async def test_an_alert_of_a_candidate_that_did_not_load_again_ends_too(shell: Shell) -> None:
    await shell.deploy("v1")
    first = await shell.split("v2")
    await shell.pass_time(2)
    lost = shell.instance("v2")
    lost.die("bus error")
    shell.health.instance_lost(MODEL, lost, "bus error")
    await shell.until(first, Phase.ROLLED_BACK)
    shell.backend._configure = lambda instance: setattr(instance, "load_error", "the disk is gone")
    second = await shell.start("v2")  # before the next look, and forgetting what v2 did so far
    await shell.until(second, Phase.FAILED)
    assert metrics(shell) == ["lost"]
    await shell.pass_time(2)
    assert metrics(shell) == []
    assert shell.desk.book.all()[-1].reason == "the version no longer serves"


async def test_a_queue_throughput_and_memory_have_limits_that_only_tell() -> None:
    limits = AlertThresholds(queue_depth=Limit(1.0, 2.0), throughput=Limit(50.0, 10.0), memory_usage=Limit(1e-9, 2e-9))
    shell = Shell(health=HealthPolicy(limits=limits, min_requests=1))
    shell.health.start()
    await shell.deploy("v1")
    gate = await hang(shell, "v1")
    asked = asyncio.create_task(shell.ask())
    await shell.pass_time(3)
    gate.open()
    await asked
    await shell.pass_time(1)
    assert active(shell, "throughput").severity is Severity.CRITICAL  # 3 tokens in 3 seconds
    await eventually_measured(shell)
    assert active(shell, "memory_usage").severity is Severity.CRITICAL
    shell.router.withdraw(MODEL)
    shell.switcher._reviver.expect(MODEL, "the test")
    waiting = [asyncio.create_task(shell.ask()) for _ in range(2)]
    await shell.pass_time(1)
    assert (active(shell, "queue_depth").value, active(shell, "queue_depth").version) == (2.0, None)
    assert shell.registry.active_version(MODEL) == "v1"
    for one in waiting:
        one.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.gather(*waiting)
    await shell.close()


async def eventually_measured(shell: Shell) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while shell.health.report().memory_usage is None:
            await asyncio.sleep(0.01)  # a real thread reads the machine's memory
    await shell.pass_time(1)


# --- the report -------------------------------------------------------------------------------------------------------


async def test_the_report_says_what_happened_in_the_window(shell: Shell) -> None:
    await shell.deploy("v1")
    await shell.pass_time(30)
    for hundredth in range(1, 101):
        feed(shell, 1, total_s=hundredth / 100, first_s=hundredth / 1000)
    await shell.pass_time(1)
    health = shell.health.report().version("v1", MODEL)
    assert health.state is HealthState.HEALTHY
    assert (health.requests, health.errors, health.error_rate) == (100, 0, 0.0)
    assert health.latency_p50_ms == pytest.approx(500, rel=0.02)
    assert health.latency_p95_ms == pytest.approx(950, rel=0.02)
    assert health.latency_p99_ms == pytest.approx(990, rel=0.02)
    assert health.first_token_p95_ms == pytest.approx(95, rel=0.02)
    assert health.requests_per_s == pytest.approx(100 / 31, rel=0.1)
    await shell.pass_time(66)
    assert shell.health.report().version("v1").requests == 0
    assert shell.health.report().version("v1").latency_p50_ms is None


async def test_a_version_that_does_not_serve_is_not_in_the_report(shell: Shell) -> None:
    with pytest.raises(UnknownVersion, match="version: got 'v9'; allowed: one that serves: no version serves"):
        shell.health.report().version("v9")
    await shell.deploy("v1")
    with pytest.raises(UnknownVersion, match=f"version: got 'v9'; allowed: one that serves: {MODEL}:v1$"):
        shell.health.report().version("v9")
    await shell.deploy("v2")
    await shell.pass_time(70)
    assert [one.version for one in shell.health.report().versions] == ["v2"]
    assert shell.health.report().to_dict()["state"] == "unknown"


def test_a_policy_refuses_what_makes_no_sense() -> None:
    with pytest.raises(InvalidInput, match="interval_s"):
        HealthPolicy(interval_s=0)
    with pytest.raises(InvalidInput, match="min_requests"):
        HealthPolicy(min_requests=0)


async def test_a_queue_is_deep_whatever_its_requests_wait_for_and_whether_or_not_anything_serves() -> None:
    gate = Gate()
    shell = Shell(
        configure=lambda instance: setattr(instance, "load_gate", gate),
        health=HealthPolicy(limits=AlertThresholds(queue_depth=Limit(1.0, 3.0))),
    )
    shell.health.start()
    submissions = [shell.submission() for _ in range(2)]
    submissions[0].version = "v2"
    submissions[1].version = "v3"
    waiting = [asyncio.create_task(shell.dispatcher.complete(one)) for one in submissions]
    await eventually(lambda: shell.queue.waiting(MODEL) == 2)
    await shell.pass_time(2)
    assert (active(shell, "queue_depth").value, active(shell, "queue_depth").model_id) == (2.0, MODEL)
    gate.open()
    await asyncio.gather(*waiting)
    await shell.pass_time(2)
    assert not [alert for alert in shell.desk.active() if alert.metric == "queue_depth"]
    await shell.close()
