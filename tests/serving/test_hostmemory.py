"""Memory in use: of the machine, or of the container where that is worse."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from abswitch.serving.hostmemory import used_fraction


def test_of_the_machine(tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    assert used_fraction(tmp_path) == pytest.approx(1.0 - memory.available / memory.total, abs=0.1)


def test_a_container_counts_where_it_is_worse_and_its_file_cache_does_not(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("1190\n")
    (tmp_path / "memory.stat").write_text("anon 900\ninactive_file 200\n")
    assert used_fraction(tmp_path) == pytest.approx(0.99)
    (tmp_path / "memory.max").write_text("max\n")
    assert used_fraction(tmp_path) < 0.99


def test_of_this_very_machine() -> None:
    assert 0.0 < used_fraction() <= 1.2
