"""A disk that fills up under an engine: requests are answered, a switch can be aborted, and every row arrives."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.store.test_outages import python, small_disk

ENGINE = """
    import asyncio, json, sys
    from pathlib import Path
    from abswitch import SwitchingEngine
    from abswitch.serving.scripted import ScriptedBackend
    from abswitch.testing import Witness
    disk = Path(sys.argv[1])

    async def main():
        config = {"model_id": "bot", "model": "script", "backend": "scripted"}
        engine = SwitchingEngine(store=disk / "s.duckdb", backends={"scripted": ScriptedBackend()})
        for version in ("v1", "v2", "v3"):
            engine.registry.register_model(config, version)
        await engine.deploy("v1")
        test = await engine.start_switch("v2", "ab_test", {"traffic_percentage": 50})
        await test.serving()
        engine.store.flush()
        witness = Witness()

        async def ask(n):
            for _ in range(n):
                name = f"r{len(witness.sent)}"
                await witness.read(name, engine.stream("who?", request_id=name))

        await ask(50)
        filler = (disk / "filler").open("wb", buffering=0)
        try:
            while True:
                filler.write(b"x" * 65536)
        except OSError as error:
            said = {"full": error.errno}
        await asyncio.gather(*(ask(100) for _ in range(20)))
        said["aborted"] = await engine.abort_switch(test.operation_id)
        said["ended"] = (await test.done()).phase
        said["then"] = (await engine.deploy("v3")).phase
        await ask(50)
        said["missing"] = engine.get_switching_status().rows_missing
        filler.close()
        (disk / "filler").unlink()
        engine.store.flush()
        routes = engine.query("SELECT * FROM routes ORDER BY epoch")
        report = witness.check(engine.query("SELECT * FROM requests ORDER BY admitted_mono_s"), routes)
        said |= {"answered": len(witness.answered), "violations": [str(one) for one in report.violations]}
        await engine.aclose()
        left = engine.store.stats()  # at the end, as samples of its health come at any time
        said |= {"waiting": left.queued + left.spooled, "dropped": left.dropped}
        again = SwitchingEngine(store=disk / "s.duckdb", backends={"scripted": ScriptedBackend()})
        said["active"] = again.registry.active_version()
        await again.aclose()
        print(json.dumps(said))

    asyncio.run(main())
"""


def test_requests_go_on_a_switch_comes_back_and_nothing_is_lost(tmp_path: Path) -> None:
    command = [*small_disk(tmp_path / "disk"), *python(ENGINE, tmp_path / "disk")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "full": 28,
        "aborted": True,
        "ended": "aborted",
        "then": "succeeded",
        "missing": 0,
        "answered": 2100,
        "violations": [],
        "waiting": 0,
        "dropped": 0,
        "active": "v3",
    }
