"""A process that ends at any moment leaves a state that the next one can go on from. Real processes, real files."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from abswitch import ModelSwitchingConfig, SwitchingEngine, assembly, persistence
from abswitch.errors import DuplicateVersion, OperationInProgress, StoreError
from abswitch.persistence import SwitchLog, open_journal
from abswitch.rollout import operation as ops
from abswitch.rollout.operation import Operation, Phase
from abswitch.rollout.strategies import CanaryStrategy
from abswitch.serving.moves import JournalEntry
from abswitch.serving.scripted import ScriptedBackend

CONFIG = {"model_id": "bot", "model": "script", "backend": "scripted"}


def backend() -> ScriptedBackend:
    return ScriptedBackend(answers={v: (lambda _, v=v: (v,)) for v in ("v1", "v2", "v3")})  # type: ignore[misc]


@asynccontextmanager
async def opened(store: Path) -> AsyncIterator[SwitchingEngine]:
    config = ModelSwitchingConfig(max_queue_wait_seconds=20.0)
    async with SwitchingEngine(config, store=store, backends={"scripted": backend()}) as engine:
        yield engine


WALK = """
import asyncio, os, signal, sys
from pathlib import Path
from abswitch import SwitchingEngine
from abswitch.serving.scripted import ScriptedBackend
from abswitch.store import journal

import duckdb  # here, once, and not in each of the forks

writes, fatal, moment = 0, None, None
write_all, sync = journal._write_all, os.fdatasync

def counted(file, data, offset):
    global writes
    writes += 1
    if writes == fatal and moment == "torn":
        write_all(file, data[: len(data) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)
    write_all(file, data, offset)

def synced(descriptor):
    sync(descriptor)
    if writes == fatal and moment == "durable":  # and its effects not begun
        os.kill(os.getpid(), signal.SIGKILL)

journal._write_all, os.fdatasync = counted, synced

async def main(store):
    backend = ScriptedBackend(answers={v: (lambda _, v=v: (v,)) for v in ("v1", "v2", "v3")})
    engine = SwitchingEngine(store=store, backends={"scripted": backend})
    for version in ("v1", "v2", "v3"):
        engine.registry.register_model({"model_id": "bot", "model": "script", "backend": "scripted"}, version)
    await engine.deploy("v1")
    test = await engine.start_switch("v2", "ab_test", {"traffic_percentage": 50})
    await test.serving()
    await test.pause()
    await test.resume()
    await test.promote()
    back = await engine.start_switch("v3", "canary", {"initial_percentage": 100, "evaluation_period_minutes": 1})
    await back.serving()
    await back.abort()
    await back.done()
    print("writes", writes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

for point in sys.argv[2:]:
    moment, fatal = point.split("-")[0], int(point.split("-")[1])
    child = os.fork()
    if child == 0:
        asyncio.run(main(Path(sys.argv[1]) / point / "s.duckdb"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, point
"""


def walk(folder: Path, *points: str) -> str:
    """Lives of a process that ends at each point, e.g. `torn-7`: half of its seventh write is in the file.

    What it wrote is in a folder named like the point.
    """
    command = [sys.executable, "-c", WALK, str(folder), *points]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


WRITES = 30
"""To the journal, in the walk above; asserted below, so that none is left out when it changes."""
POINTS = [f"{moment}-{write}" for write in range(1, WRITES + 1) for moment in ("torn", "durable")]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stores are of processes that were killed at each of the points."""
    folder = tmp_path_factory.mktemp("killed")
    assert walk(folder, *POINTS) == "", "each was killed on the way, not at its end"
    return folder


@pytest.mark.parametrize("point", POINTS)
async def test_kill_9_at_each_journal_write(killed: Path, point: str) -> None:
    async with opened(killed / point / "s.duckdb") as engine:
        if not engine.registry.list_models():  # nothing was registered yet
            return
        known = [version.version for version in engine.registry.get_model_versions()]
        (status,) = engine.get_switching_status().models
        operation = status.operation
        if operation is None:
            assert status.active_version is None
        elif operation.phase == "paused":
            assert operation.detached and "the process ended while it was" in operation.reason
        else:
            assert operation.finished
        if status.active_version is not None:
            answer = await engine.generate("who?")
            assert answer.text == status.active_version, "what served before serves again, without being asked to"
            assert engine.get_switching_status()["bot"].shares == {status.active_version: 1.0}
        if operation is not None and not operation.finished:
            with pytest.raises(OperationInProgress):
                await engine.start_switch("v3")
            assert await engine.abort_switch(operation.operation_id)
            await engine.wait_for_switch(operation.operation_id, lambda o: False)
        if "v3" in known and status.active_version != "v3":
            await engine.deploy("v3")
            assert (await engine.generate("who?")).text == "v3"


def test_the_walk_has_as_many_writes_as_are_killed(tmp_path: Path) -> None:
    assert walk(tmp_path, "durable-10000") == f"writes {WRITES}\n"


async def test_after_an_orderly_end_nothing_is_loaded_until_somebody_asks(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    async with opened(store) as engine:
        engine.registry.register_model(CONFIG, "v1")
        await engine.deploy("v1")
    async with opened(store) as engine:
        assert engine.registry.active_version("bot") == "v1"
        assert engine.get_switching_status()["bot"].loaded == ()
        assert (await engine.generate("who?")).text == "v1"


async def test_a_version_may_be_registered_and_deployed_again_after_a_restart(tmp_path: Path) -> None:
    """As a notebook does that is run again from the top."""
    store = tmp_path / "s.duckdb"
    for _ in range(2):
        async with opened(store) as engine:
            for version in ("v1", "v2"):
                engine.registry.register_model(CONFIG, version)
            await engine.deploy("v1")
            test = await engine.start_switch("v2", "ab_test")
            await test.serving()
            await test.keep()
            assert engine.registry.active_version("bot") == "v1"
    async with opened(store) as engine:
        with pytest.raises(DuplicateVersion, match="prompt_template"):
            engine.registry.register_model(CONFIG | {"prompt_template": "Q: {prompt}"}, "v1")


async def test_an_operation_that_was_running_at_an_orderly_end_is_paused(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    async with opened(store) as engine:
        for version in ("v1", "v2"):
            engine.registry.register_model(CONFIG, version)
        await engine.deploy("v1")
        test = await engine.start_switch("v2", "ab_test", {"traffic_percentage": 100}, experiment="exp")
        await test.serving()
    async with opened(store) as engine:
        operation = engine.get_switching_status()["bot"].operation
        assert operation is not None and operation.phase == "paused" and "evaluating at stage 0" in operation.reason
        assert (await engine.generate("who?")).text == "v1", "its shares are not in force"
        switch = engine.get_switch(operation.operation_id)
        assert f"resume, promote, keep or abort it, with engine.get_switch({switch.operation_id!r})" in operation.reason
        await switch.resume()
        await switch.serving()
        assert (await engine.generate("who?")).text == "v2", "now they are, after the candidate was loaded and shown"
        assert (await switch.promote()).phase == "succeeded" and engine.registry.active_version("bot") == "v2"


async def test_units_stay_on_their_arm_over_a_restart_and_a_rollback(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    units = [f"user-{i}" for i in range(200)]
    seen: list[list[str]] = []
    for round_ in range(2):
        async with opened(store) as engine:
            for version in ("v1", "v2"):
                engine.registry.register_model(CONFIG, version)
            if not round_:
                await engine.deploy("v1")
            for _ in range(2):
                test = await engine.start_switch("v2", "ab_test", {"traffic_percentage": 30}, experiment="sticky")
                await test.serving()
                seen.append([(await engine.generate("who?", unit_id=unit)).text for unit in units])
                await test.abort()
                await test.done()
    assert all(answers == seen[0] for answers in seen)
    assert 0.15 < seen[0].count("v2") / 200 < 0.45


def test_a_journal_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from abswitch import SwitchingEngine
        from abswitch.errors import StoreError
        try:
            SwitchingEngine(store=Path(sys.argv[1]))
        except StoreError as error:
            print(error)
        """
    )
    with held(tmp_path / "s.duckdb") as holder:
        ran = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "s.duckdb")],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
    assert str(holder) in ran.stdout and ran.stderr == "", ran.stderr


@contextmanager
def held(store: Path) -> Iterator[int]:
    """An engine of another process holds the store."""
    hold = (
        "import sys; from abswitch import SwitchingEngine; engine = SwitchingEngine(store=sys.argv[1]); "
        "print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        child.kill()


def test_the_journal_is_beside_the_store_and_readable(tmp_path: Path) -> None:
    walk(tmp_path, "durable-6")
    store = tmp_path / "durable-6" / "s.duckdb"
    lines = Path(f"{store}.journal").read_bytes().rstrip(b"\0").splitlines()
    kinds = [json.loads(line.partition(b" ")[2])[1] for line in lines]
    assert kinds[0] == "opened" and kinds.count("move") == 3, kinds
    assert Path(f"{store}.journal.lock").exists()


def left_behind(store: Path, *operations: Operation) -> SwitchLog:
    """The journal of a process that was killed after the last move of each."""
    journal = open_journal(store)
    for operation in operations:
        entry = JournalEntry.of(operation, ops.Routed(), operation, sequence=1, salt="salt", at_s=1.0)
        SwitchLog(journal, cast(Any, None)).write(entry)
    journal.abandon()
    return SwitchLog(open_journal(store), cast(Any, None))


def switch(operation_id: str, model_id: str = "bot", phase: Phase = Phase.EVALUATING) -> Operation:
    return Operation(
        operation_id=operation_id,
        model_id=model_id,
        stable="v1",
        candidate="v2",
        strategy=CanaryStrategy(),
        phase=phase,
    )


def test_of_operations_that_hold_a_model_the_one_that_moved_last_is_taken_over(tmp_path: Path) -> None:
    log = left_behind(tmp_path / "s.duckdb", switch("op-1"), switch("op-2"), switch("op-3", "helper"))
    found = {one.operation.operation_id: one.operation.phase for one in log.recovery(0.0).operations}
    assert found == {"op-1": Phase.ABORTED, "op-2": Phase.PAUSED, "op-3": Phase.PAUSED}
    log.close()


def test_an_operation_that_cannot_be_read_still_tells_which_version_serves(tmp_path: Path) -> None:
    """One of a newer abswitch, say."""
    store = tmp_path / "s.duckdb"
    promoted = replace(switch("op-1", phase=Phase.SUCCEEDED), winner="v2")
    left_behind(store, switch("op-0", phase=Phase.ABORTED), promoted)._journal.abandon()
    path = Path(f"{store}.journal")
    lines = path.read_bytes().rstrip(b"\0").replace(b'"succeeded"', b'"perfected"').splitlines()
    texts = [line.partition(b" ")[2] for line in lines]
    path.write_bytes(b"".join(f"{zlib.crc32(text):08x} ".encode() + text + b"\n" for text in texts))
    log = SwitchLog(open_journal(store), cast(Any, None))
    found = log.recovery(0.0)
    assert (found.version_of("bot"), found.activations[-1].version, found.operations) == ("v2", "v2", [])
    log.close()


def test_an_engine_that_could_not_take_over_lets_go_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(machinery: object) -> None:
        raise StoreError("unreadable")

    with monkeypatch.context() as patched:
        patched.setattr(assembly, "_take_over", refuse)
        with pytest.raises(StoreError, match="unreadable"):
            SwitchingEngine(store=tmp_path / "s.duckdb")
    SwitchingEngine(store=tmp_path / "s.duckdb").close()


def test_golden_answers_outlive_the_process_unless_they_answer_other_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "s.duckdb"
    log = SwitchLog(open_journal(store), cast(Any, None))
    with monkeypatch.context() as earlier:
        earlier.setattr(persistence, "ASKED", {"prompts": ["another"], "max_tokens": 3})
        log.golden(("bot", "v1", "0a"), (("a", "b"),))
    log.golden(("bot", "v2", "0b"), (("c", "d"),))
    log.close()
    log = SwitchLog(open_journal(store), cast(Any, None))
    assert log.recovery(0.0).golden == {("bot", "v2", "0b"): (("c", "d"),)}
    log.close()
