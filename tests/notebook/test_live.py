import io
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from abswitch.experiments import Progress
from abswitch.notebook.live import ProgressState, ProgressView, StageState, StageView, duration
from abswitch.stats import AnalysisPlan, ArmEvidence, Evidence, Look, Rate, RateSummary, Verdict, decide

NAMES = {"stable": "v1", "candidate": "v2"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(
    done: int, *, at_s: float, phase: str = "asking", total: int = 100, failed: int = 0, candidate: int | None = None
) -> Progress:
    answered = done - failed
    second = answered // 2 if candidate is None else candidate
    return Progress(
        phase=phase,
        done=done,
        total=total,
        failed=failed,
        by_arm={"candidate": second, "stable": answered - second} if answered else {},
        elapsed_s=at_s,
    )


def run(view: ProgressView, *, total: int = 100, each_s: float = 0.01) -> None:
    view(progress(0, at_s=0.0, phase="loading v2", total=total))
    for done in range(1, total + 1):
        view(progress(done, at_s=15.0 + done * each_s, total=total))
    view(progress(total, at_s=15.1 + total * each_s, phase="scoring", total=total))
    view(progress(total, at_s=15.2 + total * each_s, phase="ship", total=total))


def test_a_file_gets_a_line_for_each_phase_and_tenth() -> None:
    stream = io.StringIO()
    run(ProgressView(NAMES, stream=stream), total=1000)
    lines = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["loading v2"] + ["asking"] * 11 + ["scoring", "ship"]
    assert lines[-3].startswith("asking: 1,000 of 1,000 (100%) · v1 500, v2 500 · 100 requests/s")
    assert "\r" not in stream.getvalue()


def test_a_terminal_gets_one_line_a_phase_rewritten_at_most_ten_times_a_second_and_always_the_last() -> None:
    stream = Terminal()
    run(ProgressView(NAMES, stream=stream), total=1000, each_s=0.001)
    text = stream.getvalue()
    asking = [part for part in text.split("\r") if "asking" in part]
    assert 10 <= len(asking) <= 12  # one second of asking
    assert "1,000 of 1,000" in asking[-1]
    assert text.endswith("\n")
    assert text.count("\n") == 4  # one for each phase


def test_requests_that_all_fail_are_counted_too() -> None:
    stream = io.StringIO()
    view = ProgressView(stream=stream)
    for done in range(1, 11):
        view(progress(done, at_s=float(done), total=10, failed=done))
    last = stream.getvalue().splitlines()[-1]
    assert "10 of 10 (100%) · failed 10" in last


def test_the_rate_does_not_count_the_loading() -> None:
    stream = io.StringIO()
    run(ProgressView(stream=stream), total=200, each_s=0.02)
    half = next(line for line in stream.getvalue().splitlines() if "(5" in line)
    assert "50 requests/s · 2.0 s left · 17 s elapsed" in half


def test_arms_without_a_name_keep_their_own_in_a_fixed_order() -> None:
    state = ProgressState(progress(10, at_s=1.0, candidate=7), {}, None)
    assert [label for label, _, _ in state.parts] == ["stable", "candidate"]
    assert "stable 3, candidate 7" in state.to_text()


class _Tags(HTMLParser):
    """Refuses what is not balanced, and collects tags and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_balanced_escaped_and_its_bar_adds_up() -> None:
    names = {"stable": "<script>v1</script>", "candidate": "v2&"}
    state = ProgressState(progress(50, at_s=3.0, failed=10, candidate=25, phase="<b>asking"), names, 20.0)
    html = state.to_html()
    parsed = _Tags()
    parsed.feed(html)
    assert not parsed.open
    assert not [tag for tag, _ in parsed.seen if tag in ("script", "b")]
    assert "&lt;script&gt;v1&lt;/script&gt; 15" in html
    bars = [float(attributes["width"] or 0) for tag, attributes in parsed.seen if tag == "rect"]
    assert bars == [600.0, 90.0, 150.0, 60.0]  # track, stable, candidate, failed
    assert "2.5 s left" in html


def looked_at(look: int, *, candidate: str = "v2", ok: tuple[int, int] = (100, 130)) -> Verdict:
    plan = AnalysisPlan(
        baseline="v1", candidate=candidate, metrics=(Rate("error", role="guardrail", margin=0.1), Rate("exact_match")),
        expected_share=0.5, planned_n=1000, evaluation="sequential",
    )  # fmt: skip
    arms = [
        ArmEvidence(
            version=version, assigned=200, analysed=200, requests=200,
            summaries={"exact_match": RateSummary(200, right), "error": RateSummary(200, 0)},
        )
        for version, right in (("v1", ok[0]), (candidate, ok[1]))
    ]  # fmt: skip
    evidence = Evidence(baseline=arms[0], candidate=arms[1], plan_digest=plan.digest())
    return decide(plan, evidence, Look(number=look, last=False))


def test_what_a_look_found_is_shown_with_an_interval_that_holds_at_all_looks() -> None:
    before = progress(40, at_s=2.0)
    verdict = looked_at(3)
    after = replace(before, verdicts={"v2": verdict})
    found = verdict.comparisons["exact_match"]
    words = f"exact_match +0.15 [{found.low:+.3g}, {found.high:+.3g}] at look 3, 95% at all looks"
    assert "look" not in ProgressState(before, NAMES, None).to_text()
    for shown in (ProgressState(after, NAMES, None).to_text(), ProgressState(after, NAMES, None).to_html()):
        assert words in shown


def test_each_of_several_candidates_is_named_and_nothing_is_made_up() -> None:
    empty = looked_at(1, ok=(0, 0))
    nothing = replace(empty, comparisons={}, candidate="<v3>")
    state = ProgressState(replace(progress(9, at_s=1.0), verdicts={"v2": looked_at(1), "<v3>": nothing}), NAMES, None)
    assert "v2: exact_match +0.15" in state.to_text() and "<v3>: look 1: nothing to tell yet" in state.to_text()
    html = state.to_html()
    assert "&lt;v3&gt;: look 1" in html
    parsed = _Tags()
    parsed.feed(html)
    assert not parsed.open


def test_a_look_after_the_last_answer_is_shown_too() -> None:
    stream = Terminal()
    view = ProgressView(NAMES, stream=stream)
    view(progress(100, at_s=2.0))
    view(replace(progress(100, at_s=2.01), verdicts={"v2": looked_at(4)}))
    assert "at look 4" in stream.getvalue()


def test_html_without_any_request_yet() -> None:
    state = ProgressState(progress(0, at_s=0.2, phase="loading v2"), NAMES, None)
    assert "0 of 100 (0%)" in state.to_html()
    assert state.fraction == 0.0
    assert state.remaining_s is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7_620, "2 h 07 min"),
    ],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_nothing_is_rendered_while_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    view = ProgressView(NAMES, stream=terminal)
    view(progress(1, at_s=0.0))
    shown = terminal.getvalue()
    monkeypatch.setattr(ProgressState, "to_text", lambda _: pytest.fail("rendered"))
    for _ in range(100):
        view(progress(2, at_s=0.01))
    assert terminal.getvalue() == shown


def test_stages_are_told_once_each_and_their_html_is_escaped() -> None:
    stream = io.StringIO()
    view = StageView(stream=stream)
    for fraction in (0.0, 0.001, 0.5, 1.0):
        view("training", fraction)
    view("saving", 1.0)
    assert stream.getvalue().splitlines() == ["training: 0%", "training: 50%", "training: 100%", "saving: 100%"]
    assert "&lt;b&gt;" in StageState("<b>", 0.5).to_html()
