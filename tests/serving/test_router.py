from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.clock import VirtualClock
from abswitch.domain import ModelConfig, ModelVersion
from abswitch.errors import NoActiveVersion
from abswitch.serving.router import RequestRouter
from abswitch.serving.scripted import ScriptedInstance


def instance(version: str) -> ScriptedInstance:
    return ScriptedInstance(ModelVersion(version=version, config=ModelConfig(model_id="m", model="x")))


V1, V2 = instance("v1"), instance("v2")


def router(**kwargs: dict[str, int]) -> RequestRouter:
    return RequestRouter(VirtualClock(monotonic_s=10.0, wall_s=1000.0), **kwargs)


def test_no_snapshot_no_service() -> None:
    with pytest.raises(NoActiveVersion, match="'m' has no active version"):
        router().snapshot("m")


def test_a_snapshot_is_replaced_whole_and_numbered() -> None:
    routes = router(last_epochs={"m": 7})
    first = routes.commit("m", stable=("v1", V1))
    second = routes.commit("m", stable=("v1", V1), candidate=("v2", V2, 0.25), operation_id="op", step=1, salt="s")
    assert (first.epoch, second.epoch) == (8, 9), "epochs go on where an earlier process ended"
    assert routes.snapshot("m") is second
    with pytest.raises(dataclasses.FrozenInstanceError):
        second.step = 2  # type: ignore[misc]


def test_records_name_every_arm_that_traffic_may_reach() -> None:
    routes = router()
    snapshot = routes.commit("m", stable=("v1", V1), candidate=("v2", V2, 0.25), operation_id="op", salt="s")
    assert [(r.arm, r.version, r.share, r.committed_at_s, r.committed_mono_s) for r in snapshot.records()] == [
        ("candidate", "v2", 0.25, 1000.0, 10.0),
        ("stable", "v1", 0.75, 1000.0, 10.0),
    ]
    whole = routes.commit("m", stable=("v1", V1), candidate=("v2", V2, 1.0), operation_id="op", salt="s")
    assert [r.version for r in whole.records()] == ["v2"], "an arm with no share is not routable"


@given(share=st.floats(0, 1), unit=st.text(max_size=20), salt=st.text(max_size=20))
def test_a_unit_on_the_candidate_stays_there_at_every_higher_share(share: float, unit: str, salt: str) -> None:
    routes = router()
    chosen = routes.commit("m", stable=("v1", V1), candidate=("v2", V2, share), salt=salt).choose(unit)
    higher = routes.commit("m", stable=("v1", V1), candidate=("v2", V2, (1 + share) / 2), salt=salt).choose(unit)
    if chosen.name == "candidate":
        assert higher.name == "candidate"


@given(unit=st.text(max_size=20))
def test_shares_of_nothing_and_everything_are_exact(unit: str) -> None:
    routes = router()
    assert routes.commit("m", stable=("v1", V1), candidate=("v2", V2, 0.0), salt="s").choose(unit).version == "v1"
    assert routes.commit("m", stable=("v1", V1), candidate=("v2", V2, 1.0), salt="s").choose(unit).version == "v2"
    assert routes.commit("m", stable=("v1", V1)).choose(unit).version == "v1"


def test_a_restarted_instance_takes_the_place_of_the_dead_one() -> None:
    routes = router()
    routes.commit("m", stable=("v1", V1), candidate=("v2", V2, 0.5), operation_id="op", salt="s")
    fresh = instance("v1")
    renewed = routes.replace_instance("m", "v1", fresh)
    assert renewed is not None
    assert (renewed.stable.instance, renewed.epoch, renewed.operation_id) == (fresh, 2, "op")
    assert routes.replace_instance("m", "v3", fresh) is None
    routes.withdraw("m")
    assert routes.replace_instance("m", "v1", fresh) is None
