from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abswitch.experiments.bars import bar_of
from abswitch.experiments.page import duration, render, size, visible
from abswitch.experiments.pull_request import plain
from abswitch.experiments.readings import Reading, Unit
from abswitch.stats import ArmEstimate, Comparison, Mean
from tests.experiments.pages import Page


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\x00b\x1b[0m\r\n\t", "a␀b␛[0m␍\n\t"),
        ("\x7f\x85\ud800\uffff\ufdd0", "␡����"),
        ("\u202eabc\u2066\u200f", "⟨U+202E⟩abc⟨U+2066⟩⟨U+200F⟩"),
        ("שלום عالم 日本 👩‍🔬", "שלום عالم 日本 👩‍🔬"),
    ],
)
def test_what_has_no_picture_gets_one(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=40))
def test_any_text_makes_a_sound_page(text: str) -> None:
    html = render("overview.html.j2", created=text, runs=0, experiments=[]).decode()
    assert visible(text).strip() in Page(html).text.replace("&", "&")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.0012, "1.2 ms"),
        (0.25, "250 ms"),
        (3.0, "3.0 s"),
        (45.0, "45 s"),
        (600, "10 min"),
        (9000, "2.5 h"),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_sizes() -> None:
    assert [size(n) for n in (0, 999, 1500, 2_000_000, 3 * 10**15)] == ["0 B", "999 B", "1.5 kB", "2.0 MB", "3000 TB"]


def test_markdown_is_never_markup() -> None:
    nasty = "a | b\n<img src=x> `code` [link](x) **bold** \\ \x00"
    assert plain(nasty) == "a \\| b &lt;img src=x&gt; \\`code\\` \\[link\\](x) \\*\\*bold\\*\\* \\\\ ␀"


def reading(estimate: float, low: float, high: float, **metric: object) -> Reading:
    arm = ArmEstimate(n=10, value=1.0, low=0.9, high=1.1)
    found = Comparison(method="m", alpha=0.05, baseline=arm, candidate=arm, estimate=estimate, low=low, high=high)
    return Reading(Mean("latency_s", **metric), found, Unit())  # type: ignore[arg-type]  # names and values of fields


def test_bars_lie_around_zero() -> None:
    bar = bar_of(reading(0.0, -1.0, 1.0))
    assert bar is not None
    assert bar.at == 50.0
    assert bar.low + bar.high == pytest.approx(100.0)
    assert bar.margin_left is None
    assert "difference" in bar.words


def test_what_a_guardrail_allows_has_one_end() -> None:
    less = bar_of(reading(0.1, 0.0, 0.2, role="guardrail", direction="decrease", margin=0.1))
    assert less is not None and less.margin_left == 0.0
    assert 50.0 < (less.margin_width or 0.0) < 100.0
    more = bar_of(reading(0.1, 0.0, 0.2, role="guardrail", direction="increase", margin=0.1))
    assert more is not None and (more.margin_left or 0.0) + (more.margin_width or 0.0) == pytest.approx(100.0)


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_no_interval_no_bar(end: float) -> None:
    assert bar_of(reading(0.1, 0.0, end)) is None


def test_an_exact_zero_is_drawn() -> None:
    bar = bar_of(reading(0.0, 0.0, 0.0))
    assert bar is not None and (bar.low, bar.at, bar.high) == (50.0, 50.0, 50.0)
