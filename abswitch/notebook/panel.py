"""`SwitchPanel`: buttons beside a live picture of one switch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

from abswitch.engine import SwitchingEngine
from abswitch.errors import AbswitchError
from abswitch.experiments.palette import FAILED, colors_of_versions
from abswitch.notebook.output import LiveOutput
from abswitch.rollout.machine import TABLE
from abswitch.rollout.operation import Operation, Pause, Phase
from abswitch.serving.handle import SwitchHandle
from abswitch.serving.status import OperationStatus

_PAUSABLE = frozenset(phase.value for phase, row in TABLE.items() if Pause in row)


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
        way = f"{status.stable or 'nothing'} → {', '.join(status.candidates)}"
        return (
            '<div style="max-width:600px;font:13px/1.5 system-ui,sans-serif">'
            f"<div><strong>{escape(status.phase)}</strong> · {escape(status.strategy)} · "
            f"{escape(way)} · {escape(status.reason)}</div>"
            f"{split_bar(status.shares, status.stable)}{_ramp(status)}{_mirror(status)}{message}</div>"
        )


def split_bar(shares: Sequence[tuple[str, float]], stable: str | None) -> str:
    """A bar that shows how traffic is split among versions, with their names and shares below it."""
    shares = shares or (("nothing", 1.0),)
    colors = colors_of_versions(stable or "", next((v for v, _ in shares if v != stable), ""), (v for v, _ in shares))
    if shares[0][0] == "nothing":
        colors["nothing"] = FAILED
    label = ", ".join(f"{escape(version)} {share:.0%}" for version, share in shares)
    parts, x = [], 0.0
    for version, share in shares:
        parts.append(f'<rect x="{600 * x:.1f}" width="{600 * share:.1f}" height="12" fill="{colors[version]}"/>')
        x += share
    legend = "".join(
        f'<span><span style="color:{colors[version]}">■</span> {escape(version)} {share:.0%}</span>'
        for version, share in shares
    )
    return (
        f'<svg viewBox="0 0 600 12" preserveAspectRatio="none" role="img" aria-label="{label}" '
        f'style="display:block;width:100%;height:12px;border-radius:3px;margin:2px 0">{"".join(parts)}</svg>'
        f'<div style="display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 1em">{legend}</div>'
    )


def _ramp(status: OperationStatus) -> str:
    """The stages of a switch that has several, the present one in bold."""
    if len(status.ramp) < 2:
        return ""
    steps = [f"{share:.0%}" for share in status.ramp]
    if not status.finished:
        steps[status.stage] = f"<strong>{steps[status.stage]}</strong>"
    words = "all stages" if status.promoted else f"stage {status.stage + 1} of {status.stages}"
    return f'<div style="opacity:.85">{words}: {" → ".join(steps)}</div>'


def _mirror(status: OperationStatus) -> str:
    if not status.mirror:
        return ""
    return (
        f'<div style="opacity:.85">copies of {status.mirror:.0%} of requests go to {escape(status.candidate)}; '
        "users never see its answers</div>"
    )


class SwitchPanel:
    """Buttons that promote, keep, pause, resume or abort a switch, over its state, which is updated as it moves.

    A press never waits: the command runs on the engine's own loop, so it also works while a long cell blocks the
    kernel (in kernels with subshells) and takes effect without it. The state is not a widget and survives in the saved
    notebook. Of several candidates, Promote takes the one that the list beside it names.

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
        self.version = self._choice()
        self.promote, self.keep, self.pause, self.resume, self.abort = self._buttons()

    def show(self) -> None:
        """Put the panel below the running cell and follow the switch until it ended."""
        import ipywidgets
        from IPython.display import display

        display(ipywidgets.HBox(self._controls()))  # type: ignore[no-untyped-call]  # IPython's
        self._refresh()
        self._spawn(self._follow)

    def join(self, timeout_s: float) -> bool:
        """Wait until every press was answered and the switch ended; False when that takes longer than `timeout_s`.

        Good as the last line of a cell that runs unattended: what is shown after its cell ended is not kept there.
        """
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="abswitch-panel", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _controls(self) -> list[Any]:
        """What is shown, in order; the list of versions only where there is a choice."""
        choice = [self.version] if len(self._handle.status.candidates) > 1 else []
        return [self.promote, *choice, self.keep, self.pause, self.resume, self.abort]

    def _choice(self) -> Any:
        import ipywidgets

        candidates = self._handle.status.candidates
        layout = ipywidgets.Layout(width="auto")
        return ipywidgets.Dropdown(options=candidates, value=candidates[0], tooltip="what to promote", layout=layout)

    def _promote(self) -> Coroutine[Any, Any, Any]:
        return self._handle.promote(version=self.version.value)

    def _buttons(self) -> tuple[Any, ...]:
        import ipywidgets

        status, handle = self._handle.status, self._handle
        chosen = status.candidate if len(status.candidates) == 1 else "the chosen version"
        texts = (
            ("Promote", "success", "arrow-up", f"send all traffic to {chosen}", self._promote),
            ("Keep", "", "undo", f"send all traffic back to {status.stable or 'nothing'}", handle.keep),
            ("Pause", "", "pause", "hold the shares as they are", handle.pause),
            ("Resume", "", "play", "go on with the stage, whose time starts anew", handle.resume),
            ("Abort", "danger", "stop", "end the switch at once, whatever it is doing", handle.abort),
        )
        buttons = []
        for text, style, icon, tip, command in texts:
            button = ipywidgets.Button(description=text, button_style=style, icon=icon, tooltip=tip)
            button.on_click(lambda _, text=text, command=command: self._press(text, command))
            buttons.append(button)
        return tuple(buttons)

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
            paused = status.phase == Phase.PAUSED
            for control in (self.promote, self.version, self.keep, self.abort):
                control.disabled = status.finished
            self.pause.disabled = status.phase not in _PAUSABLE
            self.resume.disabled = status.finished or not paused
        return status


def _has_moved(seen: OperationStatus, now: Operation) -> bool:
    return (now.phase.value, now.shares, now.stage) != (seen.phase, seen.shares, seen.stage)
