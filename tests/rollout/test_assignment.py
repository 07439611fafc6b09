from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import lru_cache
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import binom, kstest

from abswitch.rollout import assignment
from abswitch.rollout.assignment import salted, unit_fraction
from abswitch.rollout.strategies import CanaryStrategy, GradualStrategy

NAMES = ("exp-1", "exp-2", "exp-10", "exp_1", "Exp-1", "1-exp")
UNITS = [f"user-{i}" for i in range(100_000)]


@lru_cache(maxsize=16)
def fractions(salt: str) -> npt.NDArray[np.float64]:
    state = salted(salt)
    return np.array([unit_fraction(state, unit) for unit in UNITS])


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1, 0.3, 0.5])
def test_the_share_is_binomial(share: float) -> None:
    on_candidate = int((fractions("exp-1") < share).sum())
    assert binom.ppf(5e-7, len(UNITS), share) <= on_candidate <= binom.ppf(1 - 5e-7, len(UNITS), share)


def test_fractions_are_uniform() -> None:
    assert kstest(fractions("exp-1"), "uniform").pvalue > 1e-6


@pytest.mark.parametrize("share", [0.05, 0.5])
@pytest.mark.parametrize(("one", "other"), list(combinations(NAMES, 2)))
def test_similar_salts_give_unrelated_assignments(one: str, other: str, share: float) -> None:
    phi = np.corrcoef(fractions(one) < share, fractions(other) < share)[0, 1]
    assert abs(phi) < 0.02


def test_a_higher_share_keeps_every_unit_already_there() -> None:
    where = fractions("ramp")
    shares = [stage.share for stage in (*CanaryStrategy().stages, *GradualStrategy().stages)]
    for lower, higher in pairwise(sorted(shares)):
        assert not ((where < lower) & ~(where < higher)).any()


VECTORS = {"": 0.553652633879, "a": 0.057602368735, "user-1": 0.205074491525, "Ünïcode": 0.223962166794}
"""Units of the salt `golden`. A change here moves the units of running experiments."""


def test_golden_vectors() -> None:
    state = salted("golden")
    assert {unit: round(unit_fraction(state, unit), 12) for unit in VECTORS} == VECTORS


PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ASKED = """
import json, runpy, sys
module = runpy.run_path(sys.argv[1])
state = module["salted"]("golden")
units = json.loads(sys.argv[2])
found = {unit: round(module["unit_fraction"](state, unit), 12) for unit in units}
print(json.dumps([list(sys.version_info[:2]), found]))
"""


def interpreter(version: str) -> Path | None:
    """Of another Python of this machine: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    beside = sorted(pyenv.glob(f"versions/{version}.*/bin/python"))
    found = shutil.which(f"python{version}", path="/usr/local/bin:/usr/bin:/opt/homebrew/bin")
    return beside[-1] if beside else Path(found) if found else None


@pytest.mark.parametrize("version", PYTHONS)
def test_golden_vectors_of_other_pythons(version: str) -> None:
    """The module needs the standard library alone, so that it can be asked without an environment."""
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    command = [str(python), "-I", "-X", "utf8", "-c", ASKED, str(assignment.__file__), json.dumps(list(VECTORS))]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
    assert json.loads(ran.stdout) == [[int(part) for part in version.split(".")], VECTORS]
