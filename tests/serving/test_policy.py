"""What leaves: least recently used first, never what is needed, and the budget is kept or said to be too small."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from abswitch.domain import Residency
from abswitch.serving.policy import Budget, Footprint, Held, Room, Step, make_room, usage

R, S, D, C = Residency.RESIDENT, Residency.SLEEPING, Residency.DISCARDED, Residency.COLD


def held(
    name: str, device: int = 0, host: int = 0, *, sleeps: bool = False, protected: bool = False, engine: str = ""
) -> Held:
    tiers = [(R, Footprint(device, host))]
    if sleeps:
        tiers += [(S, Footprint(1, host + device)), (D, Footprint(1, host))]
    return Held(key=("m", name), tier=R, tiers=tuple(tiers), engine=engine or name, protected=protected)


def room(versions: list[Held], need: Footprint = Footprint(), **budget: int) -> Room:  # noqa: B008 (frozen)
    return make_room(versions, need, Budget(**{"max_models": 99, **budget}))


def test_the_least_recently_used_leaves_first_and_only_as_many_as_needed() -> None:
    versions = [held(name, host=4) for name in ("a", "b", "c")]
    assert room(versions, Footprint(0, 4), host_bytes=16).steps == ()
    assert room(versions, Footprint(0, 4), host_bytes=12).steps == (Step(("m", "a"), C),)
    assert room(versions, max_models=2).steps == (Step(("m", "a"), C), Step(("m", "b"), C))


def test_what_is_needed_stays_and_the_shortage_is_told() -> None:
    versions = [held("a", host=4, protected=True), held("b", host=4)]
    found = room(versions, Footprint(0, 10), host_bytes=12)
    assert found == Room((Step(("m", "b"), C),), Footprint(0, 2)) and not found.fits


def test_the_number_of_versions_is_soft_for_what_is_in_use() -> None:
    assert room([held("a", protected=True)], max_models=1).fits


def test_from_the_device_it_goes_to_sleep_where_the_host_has_room() -> None:
    versions = [held("a", device=8, host=1, sleeps=True)]
    need = Footprint(8, 1)
    assert room(versions, need, device_bytes=10).steps == (Step(("m", "a"), S),)
    assert room(versions, need, device_bytes=10, host_bytes=4).steps == (Step(("m", "a"), D),)
    assert room(versions, need, device_bytes=10, host_bytes=1).steps == (Step(("m", "a"), C),)
    assert room(versions, need, device_bytes=8).steps == (Step(("m", "a"), C),), "a sleeper keeps a little"


def test_a_sleeper_is_ended_for_what_it_keeps_where_that_is_enough_or_all_there_is() -> None:
    asleep = replace(held("a", device=8, host=1, sleeps=True), tier=S)
    resident = held("b", device=8, host=1, sleeps=True)
    assert room([asleep, resident], Footprint(8, 1), device_bytes=10).steps == (Step(("m", "b"), S),)
    assert room([asleep, resident], Footprint(8, 1), device_bytes=9).steps == (
        Step(("m", "b"), S),
        Step(("m", "a"), C),
    )
    assert room([asleep, resident], Footprint(2, 1), device_bytes=10).steps == (Step(("m", "a"), C),)
    used = room([asleep, replace(resident, protected=True)], Footprint(8, 1), device_bytes=10)
    assert used == Room((Step(("m", "a"), C),), Footprint(6, 0))


def test_versions_on_one_engine_are_counted_once_and_never_put_to_sleep_alone() -> None:
    versions = [held("a", device=8, sleeps=True, engine="e"), held("b", device=8, sleeps=True, engine="e")]
    assert usage(versions) == Footprint(8, 0)
    assert room(versions, Footprint(2, 0), device_bytes=10).steps == ()
    assert {step.to for step in room(versions, Footprint(8, 0), device_bytes=10).steps} == {C, S} or all(
        step.to is C for step in room(versions, Footprint(8, 0), device_bytes=8).steps
    )


versions_ = st.lists(
    st.builds(
        lambda *one: one,
        st.integers(0, 20), st.integers(0, 20), st.sampled_from((None, R, S, D)), st.booleans(),
        st.sampled_from("xyzuv"),
    ),
    max_size=7,
)  # fmt: skip


@given(versions_, st.integers(0, 30), st.integers(0, 30), st.integers(1, 8), st.integers(0, 40), st.integers(0, 40))
def test_any_plan_keeps_what_is_needed_and_the_budget(
    given_: list[tuple[int, int, Residency | None, bool, str]],
    device: int,
    host: int,
    limit: int,
    most_device: int,
    most_host: int,
) -> None:
    versions = [
        replace(held(f"v{i}", d, h, sleeps=tier is not None, protected=p, engine=e if p else f"own{i}"),
                tier=R if p or tier is None else tier)
        for i, (d, h, tier, p, e) in enumerate(given_)
    ]  # fmt: skip
    budget = Budget(max_models=limit, device_bytes=most_device, host_bytes=most_host)
    need = Footprint(device, host)
    found = make_room(versions, need, budget)
    protected = {one.key for one in versions if one.protected}
    assert not protected & {step.key for step in found.steps}
    asleep = {step.key: step.to for step in found.steps}
    left = [Held(key=o.key, tier=asleep.get(o.key, o.tier), tiers=o.tiers, engine=o.engine, protected=o.protected)
            for o in versions if asleep.get(o.key) is not C]  # fmt: skip
    used = usage(left) + need
    assert used.device_bytes <= most_device + found.lacking.device_bytes
    assert used.host_bytes <= most_host + found.lacking.host_bytes
    assert len(left) + 1 <= limit or all(one.protected for one in left)
    if not found.fits:  # it gave up only when nothing that helps was left
        short = found.lacking
        assert not [
            o for o in left if not o.protected
            and ((short.device_bytes and o.footprint.device_bytes) or (short.host_bytes and o.footprint.host_bytes))
        ]  # fmt: skip
    assert make_room(versions, need, budget) == found
