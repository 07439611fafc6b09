"""`SwitchPanel`: three buttons beside a live picture of one switch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

from abswitch.engine import SwitchingEngine
from abswitch.errors import AbswitchError
from abswitch.experiments.palette import BASELINE, CANDIDATE
from abswitch.notebook.output import LiveOutput
from abswitch.rollout.operation import Operation
from abswitch.serving.handle import SwitchHandle
from abswitch.serving.status import OperationStatus


@dataclass(frozen=True, slots=True)
class SwitchView:
    """One switch as HTML and text; `message` is what the last button press came to."""

    status: OperationStatus
    message: str = ""

    def to_text(self) -> str:
        return str(self.status) + (f"\n{self.message}" if self.message else "")

    def to_html(self) -> str:
        status = self.status
        message = f'<div role="status">{escape(self.message)}</div>' if self.message else ""
        return (
            '<div style="max-width:600px;font:13px/1.5 system-ui,sans-serif">'
            f"<div><strong>{escape(status.phase)}</strong> · {escape(status.strategy)} · "
            f"{escape(status.stable or 'nothing')} → {escape(status.candidate)} · {escape(status.reason)}</div>"
            f"{split_bar(status.stable, status.candidate, status.share)}{message}</div>"
        )


def split_bar(stable: str | None, candidate: str, share: float) -> str:
    """A bar that shows how traffic is split, with the versions' names and shares below it."""
    label = f"{escape(stable or 'nothing')} {1 - share:.0%}, {escape(candidate)} {share:.0%}"
    return (
        f'<svg viewBox="0 0 600 12" preserveAspectRatio="none" role="img" aria-label="{label}" '
        'style="display:block;width:100%;height:12px;border-radius:3px;margin:2px 0">'
        f'<rect width="600" height="12" fill="{BASELINE if stable else "#999"}"/>'
        f'<rect x="{600 * (1 - share):.1f}" width="{600 * share:.1f}" height="12" fill="{CANDIDATE}"/></svg>'
        '<div style="display:flex;justify-content:space-between">'
        f'<span><span style="color:{BASELINE}">■</span> {escape(stable or "nothing")} {1 - share:.0%}</span>'
        f'<span><span style="color:{CANDIDATE}">■</span> {escape(candidate)} {share:.0%}</span></div>'
    )


class SwitchPanel:
    """Buttons that promote, keep or abort a switch, and its state as an output of its own, updated as it moves.

    A press never waits: the command runs on the engine's own loop, so it also works while a long cell blocks the
    kernel (in kernels with subshells) and takes effect without it. The state is not a widget and survives in the saved
    notebook.

    Args:
        engine: the engine of the switch.
        handle: the switch, as returned by `start_switch`, or `result.handle` of an experiment.
    """

    def __init__(self, engine: SwitchingEngine, handle: SwitchHandle) -> None:
        self._engine = engine
        self._handle = handle
        self._output = LiveOutput()
        self._message = ""
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.promote, self.keep, self.abort = self._buttons()

    def show(self) -> None:
        """Put the panel below the running cell and follow the switch until it ended."""
        import ipywidgets
        from IPython.display import display

        display(ipywidgets.HBox([self.promote, self.keep, self.abort]))  # type: ignore[no-untyped-call]  # IPython's
        self._refresh()
        self._spawn(self._follow)

    def join(self, timeout_s: float) -> bool:
        """Wait until every press was answered and the switch ended; False when that takes longer than `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="abswitch-panel", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _buttons(self) -> tuple[Any, Any, Any]:
        import ipywidgets

        status = self._handle.status
        texts = (
            ("Promote", "success", "arrow-up", f"send all traffic to {status.candidate}", self._handle.promote),
            ("Keep", "", "undo", f"send all traffic back to {status.stable or 'nothing'}", self._handle.keep),
            ("Abort", "danger", "stop", "end the switch at once, whatever it is doing", self._handle.abort),
        )
        buttons = []
        for text, style, icon, tip, command in texts:
            button = ipywidgets.Button(description=text, button_style=style, icon=icon, tooltip=tip)
            button.on_click(lambda _, text=text, command=command: self._press(text, command))
            buttons.append(button)
        return buttons[0], buttons[1], buttons[2]

    def _press(self, text: str, command: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._spawn(self._carry_out, text, command)

    def _carry_out(self, text: str, command: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        try:
            outcome = self._engine.run(command())
        except AbswitchError as error:
            self._message = f"{text}: {error}"
        except CancelledError:
            self._message = f"{text}: the engine was shut down first"
        else:
            self._message = f"{text}: it had already ended" if outcome is False else f"{text}: done"
        self._refresh()

    def _follow(self) -> None:
        with suppress(AbswitchError, CancelledError, RuntimeError):  # the engine was closed: nothing is left to follow
            while not (seen := self._refresh()).finished:
                moved = self._engine.wait_for_switch(self._handle.operation_id, partial(_has_moved, seen))
                self._engine.run(moved)

    def _refresh(self) -> OperationStatus:
        with self._lock:
            status = self._handle.status
            self._output.show(SwitchView(status, self._message))
            for button in (self.promote, self.keep, self.abort):
                button.disabled = status.finished
        return status


def _has_moved(seen: OperationStatus, now: Operation) -> bool:
    return (now.phase.value, now.share) != (seen.phase, seen.share)
