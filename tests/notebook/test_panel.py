"""The panel drives a real engine; its buttons are pressed as a front end presses them."""

import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from abswitch.notebook import panel as panel_module
from abswitch.notebook.panel import SwitchPanel, SwitchView
from tests.experiments.scripted import ab_test, engine_for
from tests.patience import PATIENCE_S


class Recorded:
    """Stands for the notebook's output, and remembers what was shown in it."""

    def __init__(self) -> None:
        self.views: list[SwitchView] = []
        self._changed = threading.Condition()

    def show(self, view: SwitchView) -> None:
        with self._changed:
            self.views.append(view)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[SwitchView], bool]) -> SwitchView:
        deadline_s = monotonic() + PATIENCE_S
        with self._changed:
            while (found := next(filter(condition, self.views), None)) is None:
                assert self._changed.wait(deadline_s - monotonic()), f"never came; last: {self.views[-1:]}"
            return found


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    recorded = Recorded()
    monkeypatch.setattr(panel_module, "LiveOutput", lambda: recorded)
    monkeypatch.setattr("IPython.display.display", lambda *_: None)
    return recorded


def buttons(panel: SwitchPanel) -> list[Any]:
    return [panel.promote, panel.keep, panel.abort]


async def test_promote(output: Recorded) -> None:
    async with ab_test(n=60) as (engine, result):
        panel = SwitchPanel(engine, result.handle)
        panel.show()
        assert output.views[0].status.share == 0.5
        assert not any(button.disabled for button in buttons(panel))
        panel.promote.click()
        ended = output.wait_for(lambda view: view.status.finished and bool(view.message))
        assert ended.status.promoted
        assert ended.message == "Promote: done"
        assert all(button.disabled for button in buttons(panel))
        assert engine.registry.active_version() == "v2"


async def test_keep_and_abort_leave_the_stable_version(output: Recorded) -> None:
    for press in ("keep", "abort"):
        async with ab_test(n=60) as (engine, result):
            panel = SwitchPanel(engine, result.handle)
            panel.show()
            getattr(panel, press).click()
            output.wait_for(lambda view: view.status.finished and bool(view.message))
            assert engine.registry.active_version() == "v1"
            output.views.clear()


async def test_a_press_returns_at_once_and_a_refusal_is_shown(output: Recorded) -> None:
    async with ab_test(n=60) as (engine, result):
        panel = SwitchPanel(engine, result.handle)
        await result.keep()
        await result.handle.done()
        panel.show()
        assert all(button.disabled for button in buttons(panel))
        began_s = monotonic()
        panel.promote.click()
        panel.abort.click()
        assert monotonic() - began_s < 5.0
        refused = output.wait_for(lambda view: view.message.startswith("Promote"))
        assert "already ended" in refused.message


async def test_it_follows_a_switch_that_somebody_else_ends(output: Recorded) -> None:
    async with ab_test(n=60) as (engine, result):
        SwitchPanel(engine, result.handle).show()
        await result.handle.abort()
        ended = output.wait_for(lambda view: view.status.finished)
        assert ended.status.phase == "aborted"
        assert ended.message == ""


async def test_pause_and_resume(output: Recorded) -> None:
    async with ab_test(n=60) as (engine, result):
        panel = SwitchPanel(engine, result.handle)
        panel.show()
        assert panel.resume.disabled and not panel.pause.disabled
        panel.pause.click()
        output.wait_for(lambda view: view.status.phase == "paused" and view.message == "Pause: done")
        assert panel.pause.disabled and not panel.resume.disabled
        panel.resume.click()
        output.wait_for(lambda view: view.status.phase == "evaluating" and view.message == "Resume: done")
        panel.abort.click()
        output.wait_for(lambda view: view.status.finished and bool(view.message))


async def test_of_several_candidates_the_chosen_one_is_promoted(output: Recorded) -> None:
    async with engine_for({"v1": 0.5, "v2": 0.6, "v3": 0.9}) as engine:
        await engine.deploy("v1")
        handle = await engine.start_switch("v2", "ab_test", {"arms": {"v2": 20, "v3": 20}})
        await handle.serving()
        panel = SwitchPanel(engine, handle)
        panel.show()
        assert dict(output.views[0].status.shares) == pytest.approx({"v1": 0.6, "v2": 0.2, "v3": 0.2})
        panel.version.value = "v3"
        panel.promote.click()
        output.wait_for(lambda view: view.status.finished and bool(view.message))
        assert engine.registry.active_version() == "v3"
