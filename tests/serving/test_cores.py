"""Engines that work at the same time compute on different cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from abswitch.serving.cores import CoreGroup, CoreGroups, Seat, bind, core_groups

FOUR = CoreGroups([CoreGroup((0, 1), 2), CoreGroup((2, 3), 2)])


def machine(folder: Path, monkeypatch: pytest.MonkeyPatch, cores: dict[int, tuple[int, int]]) -> Path:
    """A machine whose logical CPUs, by number, are of these sockets and cores."""
    for cpu, (socket, core) in cores.items():
        topology = folder / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "physical_package_id").write_text(f"{socket}\n")
        (topology / "core_id").write_text(f"{core}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
    return folder


@pytest.mark.parametrize(
    ("n", "cores", "groups"),
    [
        (2, 1, [(0,)]),
        (2, 2, [(0,), (1,)]),
        (2, 3, [(0,), (1,)]),
        (2, 4, [(0, 1), (2, 3)]),
        (1, 2, [(0, 1)]),
        (1, 4, [(0, 1, 2)]),
        (2, 8, [(0, 1, 2), (3, 4, 5)]),
        (3, 8, [(0, 1), (2, 3), (4, 5)]),
    ],
)
def test_groups_are_equal_and_a_large_machine_keeps_a_core_for_its_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, cores: int, groups: list[tuple[int, ...]]
) -> None:
    sysfs = machine(tmp_path, monkeypatch, {cpu: (0, cpu) for cpu in range(cores)})
    assert core_groups(n, sysfs=sysfs) == tuple(CoreGroup(group, len(group)) for group in groups)


def test_hyperthreads_and_sockets_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Sockets alternate, and a core's second thread comes last, as many machines number them.
    cores = {cpu: (cpu % 2, (cpu % 8) // 2) for cpu in range(16)}
    low, high = core_groups(2, sysfs=machine(tmp_path, monkeypatch, cores))
    assert low == CoreGroup((0, 8, 2, 10, 4, 12), 3)
    assert high.threads == 3 and set(low.cpus).isdisjoint(high.cpus)


def test_without_a_topology_every_cpu_is_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert core_groups(2, sysfs=tmp_path) == (CoreGroup((3,), 1), CoreGroup((5,), 1))


def test_where_threads_cannot_be_bound_there_are_no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert core_groups(2) == ()
    assert CoreGroups(()).seat() is None


def seats(n: int) -> list[Seat]:
    groups = CoreGroups(FOUR.groups)
    found = [groups.seat() for _ in range(n)]
    return [seat for seat in found if seat is not None]


def test_engines_spread_and_a_place_that_is_left_is_taken_again() -> None:
    a, b, c = seats(3)
    assert [seat.number for seat in (a, b, c)] == [0, 1, 0]
    b.leave()
    b.leave()
    d = a._groups.seat()
    assert d is not None and d.number == 1


def test_one_that_gets_work_beside_another_at_work_moves_to_idle_cores() -> None:
    a, b, c = seats(3)
    assert a.begin() is None, "nobody else is at work"
    assert c.begin() == FOUR.groups[1], "a is at work on its cores, b idles on others"
    assert c.begin() is None, "a second request"
    assert b.begin() is None, "one is at work in either group: it stays"
    c.end()
    assert c.is_at_work
    c.end()
    assert not c.is_at_work
    assert c.begin() is None, "and need not move back"


def test_it_stays_where_others_are_no_less_busy() -> None:
    a, b, c, d = seats(4)
    for seat in (a, b):
        assert seat.begin() is None
    assert (c.begin(), d.begin()) == (None, None)


def test_all_threads_of_a_process_are_bound_and_one_that_ended_is_passed_over() -> None:
    code = "import threading, time; [threading.Thread(target=time.sleep, args=(60,)).start() for _ in 'ab']; print(1)"
    code += "; import sys; sys.stdout.flush()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        cpu = max(os.sched_getaffinity(0))
        bind([process.pid], [cpu])
        threads = list(Path(f"/proc/{process.pid}/task").iterdir())
        assert len(threads) == 3
        assert all(os.sched_getaffinity(int(thread.name)) == {cpu} for thread in threads)
        process.kill()
        process.wait()
        bind([process.pid], [cpu])
