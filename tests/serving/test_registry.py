from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.clock import VirtualClock
from abswitch.domain import ModelConfig, ModelVersion
from abswitch.errors import DuplicateVersion, InvalidInput, StoreError, SwitchRefused, UnknownModel, UnknownVersion
from abswitch.records import HistoryEntry
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.strategies import strategy_of
from abswitch.serving.intents import Intent
from abswitch.serving.lineage import Lineage
from abswitch.serving.registry import DynamicModelRegistry

CONFIG = {"model_id": "bot", "model": "org/name"}


def registry(**hooks: Any) -> DynamicModelRegistry:
    return DynamicModelRegistry(VirtualClock(), **hooks)


def test_register_returns_the_model_id_and_keeps_metadata() -> None:
    models = registry()
    assert models.register_model(CONFIG, "v1", metadata={"performance": "improved"}) == "bot"
    assert models.get("bot", "v1").metadata == {"performance": "improved"}
    assert models.get("bot", "v1").config == ModelConfig(model_id="bot", model="org/name")


def test_a_duplicate_version_is_refused_and_the_first_one_stays() -> None:
    models = registry()
    models.register_model(CONFIG, "v1")
    with pytest.raises(DuplicateVersion, match="'v1'.*not yet taken.*v1"):
        models.register_model({**CONFIG, "model": "other/name"}, "v1")
    assert models.get("bot", "v1").config.model == "org/name"


def test_the_same_version_again_is_the_same_version() -> None:
    looked_up: list[str] = []
    models = registry(resolve=lambda config: looked_up.append(config.model) or "c0ffee")  # type: ignore[func-returns-value]
    config = CONFIG | {"engine_args": {"max_model_len": 64, "stop": ("a", "b")}}
    models.register_model(config, "v1", metadata={"n": (1, 2)}, tags={"team": "a"})
    first = models.get("bot", "v1")
    models.register_model(config, "v1", metadata={"n": [1, 2]}, tags={"team": "b"})
    assert models.get("bot", "v1") is first and first.commit == "c0ffee" and looked_up == ["org/name"]
    assert models.tags("v1") == {"team": "b"}, "tags are set"
    assert [entry.action for entry in models.full_history()] == ["registered", "tagged", "tagged"]
    for other, changed in (
        ({"metadata": {"n": (1, 3)}}, "metadata differs"),
        ({"model_config": CONFIG | {"revision": "x"}}, "revision, engine_args, metadata differ"),
    ):
        with pytest.raises(DuplicateVersion, match=changed):
            models.register_model(**({"model_config": config, "version": "v1"} | other))  # type: ignore[arg-type]


def test_a_name_is_free_again_when_nothing_is_known_under_it() -> None:
    known = False
    models = registry(recorded=lambda key: known and key == ("bot", "v2"))
    for version in ("v1", "v2"):
        models.register_model(CONFIG, version)
    other = CONFIG | {"revision": "other"}
    models.deregister_model("bot", "v2")
    models.register_model(other, "v2")
    assert models.get("bot", "v2").config.revision == "other"
    assert [e.action for e in models.full_history(version="v2")] == ["registered", "deregistered", "registered"]
    assert restored(models).get("bot", "v2").config.revision == "other"
    models.deregister_model("bot", "v2")
    known = True
    with pytest.raises(DuplicateVersion, match="revision differs; it stays taken, as answers are recorded under it"):
        models.register_model(CONFIG, "v2")
    models.register_model(other, "v2", metadata={"n": 1})
    assert models.get("bot", "v2").metadata == {"n": 1}, "what was recorded is the configuration's"


@pytest.mark.parametrize("how", ["it was switched to", "MLflow was told of it"])
def test_a_name_that_others_know_stays_with_its_configuration(how: str) -> None:
    models = registry()
    for version in ("v1", "v2"):
        models.register_model(CONFIG, version)
    if how.startswith("MLflow"):
        models.linked("bot", "bot", "sqlite:///x.db")
    else:
        models.activate("bot", "v2", "op-1")
        models.activate("bot", "v1", "op-2")
    models.deregister_model("bot", "v2")
    with pytest.raises(DuplicateVersion, match=how):
        models.register_model(CONFIG | {"revision": "other"}, "v2")
    models.register_model(CONFIG, "v2")


def test_an_unknown_version_names_the_known_and_the_closest() -> None:
    models = registry()
    models.register_model(CONFIG, "v1.0")
    models.register_model(CONFIG, "v2.0")
    with pytest.raises(UnknownVersion) as caught:
        models.get("bot", "v2")
    assert caught.value.value == "v2"
    assert "v1.0, v2.0" in caught.value.allowed
    assert "did you mean 'v2.0'" in caught.value.allowed


def test_an_unknown_model_is_named() -> None:
    models = registry()
    with pytest.raises(UnknownModel, match="none is registered yet"):
        models.resolve_model("bot")
    models.register_model(CONFIG, "v1")
    assert models.resolve_model() == "bot"
    models.register_model({**CONFIG, "model_id": "cat"}, "v1")
    with pytest.raises(UnknownModel, match="bot, cat"):
        models.resolve_model()


@pytest.mark.parametrize("hook", ["check", "resolve", "keep"])
def test_a_refused_version_leaves_nothing_behind(hook: str) -> None:
    def refuse(*_: object) -> None:
        raise InvalidInput("x", 1, "y")

    models = registry(**{hook: refuse})
    with pytest.raises(InvalidInput):
        models.register_model(CONFIG, "v1")
    assert models.list_models() == ()


@pytest.mark.parametrize("version", ["", " v1", 1, None, "v1\n", "a" * 129, "é"])
def test_a_malformed_version_name_is_refused(version: Any) -> None:
    with pytest.raises(InvalidInput, match="version"):
        registry().register_model(CONFIG, version)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"model_id": "bot"}, "model_config.model"),
        ({"model": "x"}, "model_config.model_id"),
        ({**CONFIG, "modle": 1}, "model_config.modle"),
        ({**CONFIG, "prompt_template": "no slot"}, "model_config.prompt_template"),
        ({**CONFIG, "trust_remote_code": 1}, "model_config.trust_remote_code"),
        ({**CONFIG, "sampling": {"temperature": -1}}, "sampling.temperature"),
        ({**CONFIG, "sampling": {"temprature": 1}}, "sampling.temprature"),
        ({**CONFIG, "engine_args": [1]}, "model_config.engine_args"),
        (3, "model_config"),
    ],
)
def test_a_malformed_configuration_names_the_field(config: Any, field: str) -> None:
    models = registry()
    with pytest.raises(InvalidInput) as caught:
        models.register_model(config, "v1")
    assert caught.value.field == field
    assert models.list_models() == ()


def test_history_keeps_every_activation() -> None:
    models = registry()
    for version in ("v1", "v2"):
        models.register_model(CONFIG, version)
    assert models.active_version() is None
    for version, operation in (("v1", "op-1"), ("v2", "op-2"), ("v2", "op-2"), ("v1", "op-3")):
        models.activate("bot", version, operation)
    assert [(entry.version, entry.operation_id) for entry in models.history()] == [
        ("v1", "op-1"),
        ("v2", "op-2"),
        ("v1", "op-3"),
    ]
    assert models.active_version("bot") == "v1"


P, R = "promoted", "rolled back"


@pytest.mark.parametrize(
    ("moves", "target", "left_out"),
    [
        ([(P, "v1")], None, set()),
        ([(P, "v1"), (P, "v2")], "v1", set()),
        ([(P, "v1"), (P, "v2"), (R, "v1")], None, {"v2"}),
        ([(P, "v1"), (P, "v2"), (P, "v3"), (R, "v2")], "v1", {"v3"}),
        ([(P, "v1"), (P, "v2"), (P, "v3"), (R, "v1")], None, {"v3"}),
        ([(P, "v1"), (P, "v2"), (P, "v1"), (P, "v2"), (R, "v1")], None, {"v2"}),
        ([(P, "v1"), (P, "v2"), (R, "v1"), (P, "v3")], "v1", {"v2"}),
        ([(P, "v1"), (P, "v2"), (R, "v1"), (P, "v2"), (P, "v3")], "v2", set()),
        ([(P, "v1"), (P, "v2"), (R, "v3")], "v1", {"v2"}),
        ([(P, "v1"), (P, "v2"), (R, "v1"), (R, "v2")], None, {"v1"}),
        ([(P, "v1"), (P, "gone"), (P, "v2")], "v1", set()),
        ([(P, "v1"), ("withdrawn", None)], "v1", set()),
        ([(P, "v1"), ("withdrawn", None), (R, "v2")], "v1", set()),
    ],
)
def test_where_a_rollback_goes(moves: list[tuple[str, str | None]], target: str | None, left_out: set[str]) -> None:
    lineage = Lineage(
        versions={name: ModelVersion(version=name, config=ModelConfig.of(CONFIG)) for name in ("v1", "v2", "v3")}
    )
    for number, (action, version) in enumerate(moves):
        lineage.apply(HistoryEntry("bot", number, action, version, None, None, "mia", "", "op"))
    assert lineage.way_back() == (target, left_out)


# --- names and aliases ------------------------------------------------------------------------------------------------


def test_a_reference_is_a_version_an_alias_or_either_behind_the_models_name() -> None:
    models = registry()
    for version in ("v1", "v2", "bot@odd"):
        models.register_model(CONFIG, version)
    models.register_model({**CONFIG, "model_id": "cat"}, "v1")
    models.set_alias("gold", "v2", model_id="bot")
    for reference in ("bot@gold", "bot:gold", "bot:v2", "bot@v2"):
        assert models.resolve(reference).key == ("bot", "v2")
        assert models.resolve(reference, "bot").key == ("bot", "v2")
    assert models.get("bot", "gold").version == "v2"
    assert models.get("bot", "bot@odd").version == "bot@odd", "a version's own name comes first"
    with pytest.raises(UnknownModel):
        models.resolve("gold")
    with pytest.raises(UnknownVersion, match="aliases: gold → v2"):
        models.get("bot", "golt")
    with pytest.raises(UnknownVersion, match="there is no champion of model 'bot': no version is active"):
        models.get("bot", "champion")
    with pytest.raises(UnknownVersion):
        models.get("cat", "bot@gold")


@pytest.mark.parametrize("alias", ["", "a b", "é", "-x", "a.b", "champion", "v1", 3, None])
def test_a_bad_alias_is_refused(alias: Any) -> None:
    models = registry()
    models.register_model(CONFIG, "v1")
    with pytest.raises(InvalidInput, match="alias"):
        models.set_alias(alias, "v1", model_id="bot")
    assert models.aliases("bot") == {}


def test_versions_and_aliases_never_share_a_name() -> None:
    models = registry()
    models.register_model(CONFIG, "v1")
    models.set_alias("gold", "v1", model_id="bot")
    for name in ("gold", "champion", "challenger"):
        with pytest.raises(InvalidInput, match="no alias"):
            models.register_model(CONFIG, name)


@pytest.mark.parametrize(
    ("strategy", "told"), [("immediate", "ticket 7; it came up"), ("canary", "it came up")], ids=["immediate", "canary"]
)
def test_what_an_immediate_switch_was_asked_for_is_told_when_it_comes_true(strategy: str, told: str) -> None:
    """Of one with steps somebody says later why it is promoted."""
    models = registry()
    for version in ("v1", "v2"):
        models.register_model(CONFIG, version)
    models.activate("bot", "v1", "op-0")
    models.intend("op-1", Intent(reason="ticket 7"))
    under_way = Operation(
        operation_id="op-1", model_id="bot", stable="v1", candidate="v2", strategy=strategy_of(strategy)
    )
    models.moved(under_way)
    models.activate("bot", "v2", "op-1", reason="it came up")
    assert models.history("bot")[-1].reason == told
    models.activate("bot", "v1", "op-1", reason="it broke")
    assert models.history("bot")[-1].reason == "it broke", "the way back is not what was asked for"
    models.moved(replace(under_way, phase=Phase.ABORTED))
    models.activate("bot", "v2", "op-2", reason="later")
    assert models.history("bot")[-1].reason == "later"


def test_aliases_move_and_go_and_all_of_it_is_told() -> None:
    models = registry()
    for version in ("v1", "v2"):
        models.register_model(CONFIG, version)
    models.set_alias("gold", "v1", model_id="bot", actor="mia", reason="first")
    models.set_alias("gold", "v1", model_id="bot")
    models.set_alias("gold", "v2", model_id="bot")
    models.delete_alias("gold", model_id="bot")
    with pytest.raises(InvalidInput, match="alias"):
        models.delete_alias("gold", model_id="bot")
    with pytest.raises(InvalidInput, match="set by hand, and model 'bot' has none$"):
        models.delete_alias("gold", model_id="bot")
    told = [(e.action, e.version, e.previous, e.actor, e.reason) for e in models.full_history("bot")[2:]]
    assert told == [
        ("alias set", "v1", None, "mia", "first"),
        ("alias set", "v2", "v1", "user", ""),
        ("alias removed", "v2", "v2", "user", ""),
    ]
    assert str(models.full_history("bot")[2]) == "3 alias set v1 (gold) by mia: first"


def test_an_alias_that_is_not_there_is_answered_with_those_that_are() -> None:
    models = registry()
    for version in ("v1", "v2"):
        models.register_model(CONFIG, version)
    models.activate("bot", "v1", "op-1")
    with pytest.raises(InvalidInput, match="set by hand, and model 'bot' has none; champion moves by itself"):
        models.delete_alias("xx")
    models.set_alias("gold", "v2")
    with pytest.raises(InvalidInput, match=r"one of gold \(did you mean 'gold'\?\)"):
        models.delete_alias("gould")


def test_a_version_named_like_a_model_and_an_alias_is_meant_first() -> None:
    models = registry()
    for version in ("v1", "bot@gold"):
        models.register_model(CONFIG, version)
    models.register_model(CONFIG | {"model_id": "cat"}, "v1")
    models.set_alias("gold", "v1", model_id="bot")
    assert models.resolve("bot@gold").version == "bot@gold"
    with pytest.raises(UnknownVersion, match="one of v1$"):
        models.resolve("cat:v2")


def test_tags_change_and_metadata_does_not() -> None:
    models = registry()
    models.register_model(CONFIG, "v1", metadata={"n": 1}, tags={"team": "a"})
    models.set_tag("v1", "team", "a", model_id="bot")
    models.set_tag("v1", "stage", "x", model_id="bot")
    models.set_tag("v1", "team", None, model_id="bot")
    assert models.tags("v1", model_id="bot") == {"stage": "x"}
    assert [e.action for e in models.full_history()] == ["registered", "tagged", "tagged", "untagged"]
    for bad in ({"team": 1}, {"no spaces": "x"}):
        with pytest.raises(InvalidInput):
            models.register_model(CONFIG, "v2", tags=bad)  # type: ignore[arg-type]
    models.set_tag("v1", "team", None)
    assert len(models.full_history()) == 4, "it had none of that key"
    with pytest.raises(InvalidInput, match="value"):
        models.set_tag("v1", "stage", 3)  # type: ignore[arg-type]
    assert [v.version for v in models.get_model_versions()] == ["v1"]
    with pytest.raises(TypeError):
        models.get("bot", "v1").metadata["n"] = 2  # type: ignore[index]


# --- writing down -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_down_did_not_happen() -> None:
    full = False

    def keep(*_: object) -> None:
        if full:
            raise StoreError("the disk is full")

    models = registry(keep=keep)
    models.register_model(CONFIG, "v1")
    full = True
    for change in (
        lambda: models.register_model(CONFIG, "v2"),
        lambda: models.set_alias("gold", "v1", model_id="bot"),
        lambda: models.set_tag("v1", "team", "a", model_id="bot"),
    ):
        with pytest.raises(StoreError):
            change()
    assert [e.action for e in models.full_history()] == ["registered"]
    assert (models.aliases(), models.tags("v1", model_id="bot"), len(models.get_model_versions())) == ({}, {}, 1)


def test_the_switcher_never_waits_for_a_change_by_hand() -> None:
    """A disk that hangs while somebody sets an alias must not hold a promotion up."""
    writing, written = threading.Event(), threading.Event()

    def keep(entry: HistoryEntry, _: object) -> None:
        if entry.action == "alias set":
            writing.set()
            assert written.wait(10)

    models = registry(keep=keep)
    models.register_model(CONFIG, "v1")
    by_hand = threading.Thread(target=models.set_alias, args=("gold", "v1"))
    by_hand.start()
    assert writing.wait(10)
    models.activate("bot", "v1", "op-1")
    assert models.aliases() == {"champion": "v1"}
    written.set()
    by_hand.join()
    assert models.aliases() == {"champion": "v1", "gold": "v1"}
    assert [e.sequence for e in models.full_history()] == [1, 2, 3]


def test_many_threads_register_without_losing_or_repeating_an_entry() -> None:
    models = registry(max_versions=1000)
    refused: list[str] = []

    def work(thread: int) -> None:
        for n in range(50):
            models.register_model(CONFIG, f"{thread}-{n}")
            models.register_model(CONFIG, f"same-{n}")
            try:
                models.register_model(CONFIG | {"revision": str(thread)}, f"shared-{n}")
            except DuplicateVersion as error:
                refused.append(str(error.value))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(models.get_model_versions()) == 300 and len(refused) == 150
    assert [e.sequence for e in models.full_history()] == list(range(1, 301))


# --- taking over ------------------------------------------------------------------------------------------------------


def restored(models: DynamicModelRegistry) -> DynamicModelRegistry:
    again = registry()
    lineage = models._models["bot"]
    again.restore([*lineage.versions.values(), *lineage.gone.values()], models.full_history("bot"))
    return again


KINDS = ("register", "drop", "alias", "unalias", "tag", "untag", "activate", "withdraw")
ACTS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 3)), max_size=40)


@given(ACTS)
def test_what_the_history_tells_is_what_is_known(acts: list[tuple[str, int]]) -> None:
    models = registry()
    models.register_model(CONFIG, "base")
    for act, n in acts:
        with suppress(InvalidInput, SwitchRefused):
            _do(models, act, f"v{n}")
    again = restored(models)
    for view in (
        lambda one: one.aliases("bot"),
        lambda one: [v.version for v in one.get_model_versions("bot")],
        lambda one: {v.version: one.tags(v.version, model_id="bot") for v in one.get_model_versions("bot")},
        lambda one: (one.active_version("bot"), one.previous_version("bot"), one.full_history("bot")),
        lambda one: one.snapshot("bot").to_dict(),
    ):
        assert view(again) == view(models)


def _do(models: DynamicModelRegistry, act: str, version: str) -> None:
    match act:
        case "register":
            models.register_model(CONFIG, version)
        case "drop":
            models.deregister_model("bot", version)
        case "alias":
            models.set_alias("gold", version, model_id="bot")
        case "unalias":
            models.delete_alias("gold", model_id="bot")
        case "tag":
            models.set_tag(version, "team", version, model_id="bot")
        case "untag":
            models.set_tag(version, "team", None, model_id="bot")
        case "activate":
            models.activate("bot", version, "op")
        case "withdraw":
            models.activate("bot", None, "op")


def activation(version: str | None, operation_id: str, at_s: float = 7.0) -> HistoryEntry:
    return HistoryEntry("bot", 0, "promoted", version, None, None, "journal", "told", operation_id, {}, at_s)


def test_what_only_the_journal_knew_is_taken_over_in_order_and_once() -> None:
    models = registry()
    for version in ("v1", "v2", "v3"):
        models.register_model(CONFIG, version)
    models.activate("bot", "v1", "op-1")
    journal = [activation("v1", "op-1"), activation("v2", "op-2"), activation("v3", "op-3", 9.0)]
    again = restored(models)
    again.catch_up(journal)
    again.catch_up(journal)
    assert [(e.version, e.operation_id) for e in again.history()] == [
        ("v1", "op-1"),
        ("v2", "op-2"),
        ("v3", "op-3"),
    ]
    assert (again.full_history()[-1].actor, again.full_history()[-1].at_s) == ("recovery", 9.0)


def test_the_journals_last_word_wins() -> None:
    models = registry()
    for version in ("v1", "v2"):
        models.register_model(CONFIG, version)
    models.activate("bot", "v1", "op-1")
    models.activate("bot", "v2", "op-2")  # its move was not yet in the journal when the process was killed
    again = restored(models)
    again.catch_up([activation("v1", "op-1"), activation("lost", "op-x"), activation("v1", "op-1")])
    assert again.active_version() == "v1"
    again.catch_up([activation("v1", "op-1"), HistoryEntry("unknown", 0, "promoted", "v", None, None, "j", "", "op")])
    assert again.list_models() == ("bot",)


# --- how many are kept ------------------------------------------------------------------------------------------------


def test_beyond_the_bound_the_version_that_was_active_longest_ago_goes() -> None:
    models = registry(max_versions=4, in_use=lambda key: "it is pinned" if key == ("bot", "v2") else None)
    for n in range(1, 5):
        models.register_model(CONFIG, f"v{n}")
    models.activate("bot", "v4", "op-1")
    models.activate("bot", "v1", "op-2")
    models.register_model(CONFIG, "v5")
    assert [v.version for v in models.get_model_versions()] == ["v1", "v2", "v4", "v5"], "v3 was never active"
    models.set_alias("gold", "v5", model_id="bot")
    models.register_model(CONFIG, "v6")
    assert len(models.get_model_versions()) == 5, "nothing may go: active, before that, pinned, named"
    gone = models.full_history(version="v3")[-1]
    assert (gone.action, gone.actor, gone.reason) == ("deregistered", "registry", "max_version_history is 4")
    with pytest.raises(InvalidInput, match="max_version_history"):
        registry(max_versions=1)


def test_the_version_just_registered_never_goes_for_itself() -> None:
    models = registry(max_versions=2, in_use=lambda key: None if key[1] == "v3" else "it is pinned")
    for version in ("v1", "v2", "v3"):
        models.register_model(CONFIG, version)
    assert [v.version for v in models.get_model_versions()] == ["v1", "v2", "v3"]


def test_a_registration_that_fails_takes_no_other_version_with_it() -> None:
    def keep(entry: HistoryEntry, _: object) -> None:
        if entry.version == "v3":
            raise StoreError("the disk is full")

    models = registry(max_versions=2, keep=keep)
    for version in ("v1", "v2"):
        models.register_model(CONFIG, version)
    with pytest.raises(StoreError):
        models.register_model(CONFIG, "v3")
    assert [v.version for v in models.get_model_versions()] == ["v1", "v2"]


def test_a_surplus_version_whose_end_is_not_safe_is_told_of_and_the_new_one_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost: Future[None] = Future()
    lost.set_exception(StoreError("the disk is full"))
    models = registry(max_versions=2, note=lambda _: lost)
    for version in ("v1", "v2", "v3"):
        models.register_model(CONFIG, version)
    assert [v.version for v in models.get_model_versions()] == ["v2", "v3"]
    assert "version v1 of model bot comes back with a restart: the disk is full" in caplog.text


def test_a_version_goes_once() -> None:
    models = registry()
    models.register_model(CONFIG, "v1")
    models.register_model(CONFIG, "v2")
    models.strike("bot", "v1", Intent())
    with pytest.raises(UnknownVersion, match="one of v2"):
        models.strike("bot", "v1", Intent())
    assert [entry.action for entry in models.full_history("bot", version="v1")] == ["registered", "deregistered"]


@pytest.mark.parametrize("action", ["alias set", "tagged", "untagged"])
def test_what_is_deregistered_while_the_disk_is_waited_for_gets_neither_alias_nor_tag(action: str) -> None:
    def keep(entry: HistoryEntry, _: object) -> None:
        if entry.action == action:
            models.strike("bot", "v1", Intent())

    models = registry(keep=keep)
    models.register_model(CONFIG, "v1", tags={} if action == "tagged" else {"team": "a"})
    models.register_model(CONFIG, "v2")
    with pytest.raises(UnknownVersion, match="'v1'.*one of v2"):
        if action == "alias set":
            models.set_alias("gold", "v1")
        else:
            models.set_tag("v1", "team", "a" if action == "tagged" else None)
    for one in (models, restored(models)):
        assert one.aliases("bot") == {}
        one.register_model(CONFIG, "v1")
        assert one.tags("v1") == {}, "nor does the next of that name"


def test_deregistered_versions_are_no_way_back() -> None:
    models = registry()
    for version in ("v1", "v2", "v3"):
        models.register_model(CONFIG, version)
        models.activate("bot", version, f"op-{version}")
    assert models.previous_version() == "v2"
    assert models.deregister_model("bot", "v2")
    assert models.previous_version() == "v1"
    assert models.last_active("bot", besides={"v3"}) == "v1"
    with pytest.raises(SwitchRefused, match="active version"):
        models.deregister_model("bot", "v3")
    with pytest.raises(UnknownVersion):
        models.deregister_model("bot", "v2")
    stats = models.get_registry_stats()
    assert (stats.versions, stats.deregistered, stats.promotions, stats.entries) == (2, 1, 3, 7)


def test_texts_that_no_file_can_hold_are_kept_by_their_escapes_or_refused() -> None:
    models = registry()
    models.register_model(CONFIG, "v1", reason="why \udfff", tags={"note": "\ud800"})
    models.set_tag("v1", "other", "grün \udfff")
    assert models.tags("v1") == {"note": "\\ud800", "other": "grün \\udfff"}
    assert models.full_history("bot")[0].reason == "why \\udfff"
    with pytest.raises(InvalidInput, match="metadata.*JSON values only"):
        models.register_model(CONFIG, "v2", metadata={"ticket": "\udfff"})
    with pytest.raises(InvalidInput, match="reason: .*a text"):
        models.register_model(CONFIG, "v2", reason=ValueError("no"))  # type: ignore[arg-type]  # on purpose
    assert len(models.get_model_versions("bot")) == 1
