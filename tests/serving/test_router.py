from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.clock import VirtualClock
from abswitch.domain import ModelConfig, ModelVersion, SwitchPath
from abswitch.errors import NoActiveVersion
from abswitch.serving.router import Mirror, RequestRouter, RoutedArm, RouteSnapshot
from abswitch.serving.scripted import ScriptedInstance


def instance(version: str) -> ScriptedInstance:
    return ScriptedInstance(ModelVersion(version=version, config=ModelConfig(model_id="m", model="x")))


INSTANCES = {version: instance(version) for version in ("v1", "v2", "v3")}
STABLE = RoutedArm("stable", "v1", INSTANCES["v1"], 1.0)


def to(version: str, share: float, name: str = "candidate") -> RoutedArm:
    return RoutedArm(name, version, INSTANCES[version], share)


def router(**kwargs: dict[str, int]) -> RequestRouter:
    return RequestRouter(VirtualClock(monotonic_s=10.0, wall_s=1000.0), **kwargs)


def test_no_snapshot_no_service() -> None:
    with pytest.raises(NoActiveVersion, match="'m' has no active version"):
        router().snapshot("m")


def test_a_snapshot_is_replaced_whole_and_numbered() -> None:
    routes = router(last_epochs={"m": 7})
    first = routes.commit("m", stable=STABLE)
    second = routes.commit("m", stable=STABLE, candidates=(to("v2", 0.25),), operation_id="op", step=1, salt="s")
    assert (first.epoch, second.epoch) == (8, 9), "epochs go on where an earlier process ended"
    assert routes.snapshot("m") is second
    with pytest.raises(dataclasses.FrozenInstanceError):
        second.step = 2  # type: ignore[misc]


def test_records_name_every_arm_that_traffic_may_reach() -> None:
    routes = router()
    snapshot = routes.commit("m", stable=STABLE, candidates=(to("v2", 0.25),), operation_id="op", salt="s")
    assert [(r.arm, r.version, r.share, r.committed_at_s, r.committed_mono_s) for r in snapshot.records()] == [
        ("candidate", "v2", 0.25, 1000.0, 10.0),
        ("stable", "v1", 0.75, 1000.0, 10.0),
    ]
    whole = routes.commit("m", stable=STABLE, candidates=(to("v2", 1.0),), operation_id="op", salt="s")
    assert [r.version for r in whole.records()] == ["v2"], "an arm with no share is not routable"


@given(share=st.floats(0, 1), unit=st.text(max_size=20), salt=st.text(max_size=20))
def test_a_unit_on_the_candidate_stays_there_at_every_higher_share(share: float, unit: str, salt: str) -> None:
    routes = router()
    chosen = routes.commit("m", stable=STABLE, candidates=(to("v2", share),), salt=salt).choose(unit)
    higher = routes.commit("m", stable=STABLE, candidates=(to("v2", (1 + share) / 2),), salt=salt).choose(unit)
    if chosen.name == "candidate":
        assert higher.name == "candidate"


@given(unit=st.text(max_size=20))
def test_shares_of_nothing_and_everything_are_exact(unit: str) -> None:
    routes = router()
    assert routes.commit("m", stable=STABLE, candidates=(to("v2", 0.0),), salt="s").choose(unit).version == "v1"
    assert routes.commit("m", stable=STABLE, candidates=(to("v2", 1.0),), salt="s").choose(unit).version == "v2"
    assert routes.commit("m", stable=STABLE).choose(unit).version == "v1"


def three_arms(v2: float, v3: float) -> RouteSnapshot:
    return router().commit("m", stable=STABLE, candidates=(to("v2", v2), to("v3", v3, "candidate-2")), salt="s")


def test_several_candidates_get_their_shares_and_keep_their_units() -> None:
    units = [f"user-{i}" for i in range(20_000)]
    before = [three_arms(0.1, 0.2).choose(unit).version for unit in units]
    after = [three_arms(0.2, 0.4).choose(unit).version for unit in units]
    for version, share in (("v2", 0.1), ("v3", 0.2), ("v1", 0.7)):
        assert before.count(version) / len(units) == pytest.approx(share, abs=0.015)
    assert all(a == b for b, a in zip(before, after, strict=True) if b != "v1"), (
        "a ramp moves nobody between candidates"
    )


@given(unit=st.text(max_size=20), part=st.floats(0.01, 0.99))
def test_candidates_with_everything_leave_nothing_to_the_stable_version(unit: str, part: float) -> None:
    assert three_arms(part, 1 - part).choose(unit).version != "v1"


def test_copies_are_independent_of_the_arm() -> None:
    shadow = Mirror(arm=to("v3", 0.25, "shadow"))
    snapshot = router().commit("m", stable=STABLE, candidates=(to("v2", 0.5),), mirror=shadow, salt="s")
    names = [f"r{i}" for i in range(20_000)]
    copied = [snapshot.is_mirrored(name) for name in names]
    on_candidate = [snapshot.choose(name).version == "v2" for name in names]
    both = sum(a and b for a, b in zip(copied, on_candidate, strict=True))
    assert sum(copied) / len(names) == pytest.approx(0.25, abs=0.015)
    assert both / len(names) == pytest.approx(0.125, abs=0.015)
    assert ("shadow", "v3", 0.25) in [(r.arm, r.version, r.share) for r in snapshot.records()]
    assert "v3" not in [arm.version for arm in snapshot.arms], "users never meet the shadow"


def test_a_restarted_instance_takes_the_place_of_the_dead_one() -> None:
    routes = router()
    routes.commit("m", stable=STABLE, candidates=(to("v2", 0.5),), operation_id="op", salt="s")
    fresh = RoutedArm("stable", "v1", instance("v1"), 1.0, SwitchPath.RESTART)
    renewed = routes.replace_instance("m", fresh)
    assert renewed is not None
    assert (renewed.stable.instance, renewed.epoch, renewed.operation_id) == (fresh.instance, 2, "op")
    assert (renewed.stable.share, renewed.stable.path) == (0.5, SwitchPath.RESTART)
    assert routes.replace_instance("m", replace(fresh, version="v3")) is None
    routes.withdraw("m")
    assert routes.replace_instance("m", fresh) is None


async def test_who_waits_is_told_of_the_next_change() -> None:
    routes = router()
    committed, withdrawn = routes.changed("m"), routes.changed("other")
    routes.commit("m", stable=STABLE)
    assert committed.done() and not withdrawn.done()
    routes.withdraw("other")
    assert withdrawn.done()
