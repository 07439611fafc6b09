"""Draws docs/figures/expected_sample_size.png: how much data each kind of test uses until it stops.

All tests are made to find the planned effect with a chance of 80 % at alpha .05, so they differ in the largest sample
they may need: a test for one look always uses that; the others stop when they can. By numerical integration.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import special

from abswitch.stats.crossing import anytime_expected_share, anytime_noncentrality
from abswitch.stats.group_sequential import GroupSequentialDesign

OUT = Path(__file__).parents[1] / "docs" / "figures" / "expected_sample_size.png"
FIVE = [0.2, 0.4, 0.6, 0.8, 1.0]
SINGLE = float(special.ndtri(0.975) + special.ndtri(0.8))
EFFECTS = np.linspace(0.0, 2.5, 51)

Floats = NDArray[np.float64]


def group_sequential(spending: str) -> tuple[float, Floats]:
    """Largest sample, and that used on average by effect, both over the sample for one look."""
    design = GroupSequentialDesign(spending)
    largest = design.inflation(FIVE)
    drift = SINGLE * np.sqrt(largest)
    return largest, largest * np.array([design.expected_fraction(FIVE, effect * drift) for effect in EFFECTS])


def any_time() -> tuple[float, Floats]:
    """The same for the mixture SPRT, looked at a hundred times."""
    drift = anytime_noncentrality(0.8)
    largest = (drift / SINGLE) ** 2
    return largest, largest * np.array([anytime_expected_share(effect * drift) for effect in EFFECTS])


CURVES: dict[str, tuple[Callable[[], tuple[float, Floats]], str, str]] = {
    "group sequential, 5 looks, O’Brien–Fleming": (lambda: group_sequential("obrien-fleming"), "#1f6fb2", "-"),
    "group sequential, 5 looks, Pocock": (lambda: group_sequential("pocock"), "#1f6fb2", "--"),
    "any time (mixture SPRT)": (any_time, "#c2571a", "-"),
}


def draw(path: Path) -> dict[str, float]:
    """Write the figure; returns, at the planned effect, each test's average and largest sample."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figures: dict[str, float] = {}
    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    axes.axhline(1.0, color="#555555", linewidth=1.5, label="one look")
    for label, (curve, colour, dashes) in CURVES.items():
        largest, used = curve()
        axes.plot(EFFECTS, used, dashes, color=colour, linewidth=2, label=f"{label}; at most {largest:.2f}")
        figures[label] = round(float(np.interp(1.0, EFFECTS, used)), 4)
        figures[f"{label}, largest"] = round(largest, 4)
    axes.axvline(1.0, color="#bbbbbb", linewidth=1, zorder=0)
    axes.set(
        xlabel="true effect, as a multiple of the one planned for",
        ylabel="observations used on average,\nover those of a test with one look",
        xlim=(0, 2.5),
        ylim=(0, None),
        title="Every test finds the planned effect with a chance of 80 % (α = 0.05)",
    )
    axes.legend(frameon=False, loc="lower left")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return figures


def main() -> None:
    """Draw, and print the line of figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    print(json.dumps({"figure": str(options.out), "at_planned_effect": draw(options.out)}, ensure_ascii=False))


if __name__ == "__main__":
    main()
