"""What the process engine promises beyond the contract: detached, adopted beyond doubt, and never the wrong signal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers.base import Found, Life, Resources
from quarterdeck_agent.drivers.process import ProcessEngine, is_alive
from quarterdeck_agent.errors import EngineError, InvalidInput, StartRefused
from tests.agent.engines.rigs import LIVES, MIB, ProcessRig, Program, ended, exits, until


def folder_of(rig: ProcessRig, found: Found) -> Path:
    return rig.folder / "replicas" / found.id


def state_of(rig: ProcessRig, found: Found) -> dict[str, Any]:
    state = json.loads((folder_of(rig, found) / "shim.json").read_text())
    assert isinstance(state, dict)
    return state


def pretend(rig: ProcessRig, found: Found, **changes: Any) -> Found:
    """Rewrite who runs as if it were another process, and see it with a new engine."""
    path = folder_of(rig, found) / "shim.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return asyncio.run(inventory(rig))[found.id]


async def inventory(rig: ProcessRig) -> dict[str, Found]:
    return {found.id: found for found in (await rig.engine().inventory()).replicas}


def test_a_pid_that_belongs_to_somebody_else_now_is_never_signalled(process_rig: ProcessRig) -> None:
    with subprocess.Popen(["sleep", "300"]) as stranger:
        started = asyncio.run(process_rig.engine().start(process_rig.spec("one", exits(0))))
        asyncio.run(ended(process_rig.engine(), started))
        (folder_of(process_rig, started) / "exit.json").unlink()
        found = pretend(process_rig, started, pid=stranger.pid, child=stranger.pid)
        assert found.life is Life.EXITED
        assert found.exit_code is None
        assert "supervisor" in found.reason
        asyncio.run(process_rig.engine().stop(found, 0))
        assert stranger.poll() is None
        stranger.kill()


def test_a_replica_of_an_earlier_boot_has_ended_and_is_not_signalled(process_rig: ProcessRig) -> None:
    started = asyncio.run(process_rig.engine().start(process_rig.spec("one")))
    boot = state_of(process_rig, started)["boot_id"]
    found = pretend(process_rig, started, boot_id="another")
    assert (found.life, found.started, found.ended) == (Life.EXITED, None, None)
    asyncio.run(process_rig.engine().stop(found, 0))
    assert is_alive(*map(int, started.handle.split(":")))
    pretend(process_rig, started, boot_id=boot)


def test_a_replica_outlives_the_process_that_started_it(process_rig: ProcessRig) -> None:
    code = (
        "import asyncio, pathlib, sys\n"
        "from tests.agent.engines.rigs import ProcessRig\n"
        "rig = object.__new__(ProcessRig)\n"
        "rig.folder, rig.instance = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "rig.bundle = rig.folder / 'bundle'\n"
        "from quarterdeck_agent.clock import SystemClock\n"
        "rig.clock = SystemClock()\n"
        "print(asyncio.run(rig.engine().start(rig.spec('one'))).handle, flush=True)\n"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    words = [sys.executable, "-c", code, str(process_rig.folder), process_rig.instance]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (found,) = asyncio.run(inventory(process_rig)).values()
    assert found.life is Life.RUNNING
    assert found.handle == done.stdout.strip()
    asyncio.run(process_rig.engine().stop(found, 5))
    assert asyncio.run(ended(process_rig.engine(), found)).signal == signal.SIGTERM


def test_a_child_dies_with_its_supervisor(process_rig: ProcessRig) -> None:
    async def story() -> None:
        engine = process_rig.engine()
        found = await engine.start(process_rig.spec("one"))
        os.kill(state_of(process_rig, found)["pid"], signal.SIGKILL)
        after = await ended(engine, found)
        assert "supervisor" in after.reason
        assert not is_alive(*map(int, found.handle.split(":")))

    asyncio.run(story())


def test_everything_that_a_replica_started_ends_with_it(process_rig: ProcessRig) -> None:
    shell = "sleep 301 & (setsid sleep 302 &) ; trap '' TERM; echo ready; while :; do sleep 1; done"

    async def story() -> None:
        engine = process_rig.engine()
        found = await engine.start(process_rig.spec("one", Program(shell)))

        async def whole() -> bool:
            return len(descendants(state_of(process_rig, found)["pid"])) >= 4

        await until(whole, what="the family")
        family = descendants(state_of(process_rig, found)["pid"])
        await engine.stop(found, 0)
        assert not living(family)

    asyncio.run(story())


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [each for child in children for each in (int(child), *descendants(int(child)))]


def test_a_folder_that_was_prepared_but_never_ran_can_be_started_and_removed(process_rig: ProcessRig) -> None:
    async def story() -> None:
        engine = process_rig.engine()
        found = await engine.start(process_rig.spec("one", exits(0)))
        await ended(engine, found)
        for name in ("shim.json", "exit.json"):
            (folder_of(process_rig, found) / name).unlink()
        engine = process_rig.engine()
        (left,) = (await engine.inventory()).replicas
        assert left.life is Life.CREATED
        assert (await engine.start(process_rig.spec("one"))).life is Life.RUNNING

    asyncio.run(story())


def test_a_command_that_does_not_exist_is_refused_and_leaves_nothing(process_rig: ProcessRig) -> None:
    async def story() -> None:
        engine = process_rig.engine()
        with pytest.raises(StartRefused) as caught:
            await engine.start(process_rig.spec("one", command=("/no/such/program",)))
        assert caught.value.field == "command"

    asyncio.run(story())
    assert list((process_rig.folder / "replicas").iterdir()) == []


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\0b"])
def test_an_id_that_is_no_folder_name_is_refused(process_rig: ProcessRig, name: str) -> None:
    with pytest.raises(InvalidInput):
        asyncio.run(process_rig.engine().start(process_rig.spec("one", id=name)))


def test_secrets_of_the_environment_are_neither_in_argv_nor_on_disk(process_rig: ProcessRig) -> None:
    async def story() -> None:
        engine = process_rig.engine()
        found = await engine.start(process_rig.spec("one", env={"TOKEN": "canary-51ab"}))
        shim = state_of(process_rig, found)["pid"]
        for pid in (shim, found.pids[0]):
            assert "canary-51ab" not in command_line(pid)
        assert not holding(folder_of(process_rig, found), b"canary-51ab")
        assert holding(folder_of(process_rig, found), b"digits")

    asyncio.run(story())


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def holding(folder: Path, needle: bytes) -> list[Path]:
    """The files below a folder that hold these bytes."""
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]


def test_a_cpu_limit_binds_the_replica_to_as_many_cores(process_rig: ProcessRig) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core cannot be divided")

    async def story() -> None:
        engine = process_rig.engine()
        spec = process_rig.spec("one", resources=Resources(cpus=1))
        first = await engine.start(spec)
        second = await engine.start(process_rig.spec("two", resources=Resources(cpus=1)))
        cores = [os.sched_getaffinity(each.pids[0]) for each in (first, second)]
        assert [len(each) for each in cores] == [1, 1]
        assert cores[0] != cores[1]

    asyncio.run(story())


def test_what_holds_the_limits_is_told_in_the_state(process_rig: ProcessRig) -> None:
    async def story() -> None:
        engine = process_rig.engine()
        found = await engine.start(process_rig.spec("one", resources=Resources(memory=64 * MIB)))
        held = state_of(process_rig, found)["held"]
        assert held["memory"] in ("cgroup", "rlimit", "none")
        if held["memory"] == "cgroup" and "memory" in found.cgroups:
            assert int((found.cgroups["memory"] / "memory.limit_in_bytes").read_text()) == 64 * MIB
        assert (held["memory"] == "cgroup") == bool({"memory", "unified"} & found.cgroups.keys())

    asyncio.run(story())


def test_control_groups_go_with_their_replica(process_rig: ProcessRig) -> None:
    async def story() -> None:
        engine = process_rig.engine()
        found = await engine.start(process_rig.spec("one"))
        await engine.stop(found, 0)
        await engine.remove(await ended(engine, found))
        assert [path for path in found.cgroups.values() if path.exists()] == []

    asyncio.run(story())


def test_a_full_log_disk_drops_output_and_the_replica_runs_on(process_rig: ProcessRig) -> None:
    shell = "i=0; while [ $i -lt 3000 ]; do echo 0123456789012345678901234567890123456789; i=$((i+1)); done; exit 5"
    spec = process_rig.spec("one", Program(shell))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(spec.log_folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user cannot mount a small disk")
    try:

        async def story() -> None:
            engine = process_rig.engine()
            found = await ended(engine, await engine.start(spec))
            assert found.exit_code == 5
            note = json.loads((folder_of(process_rig, found) / "exit.json").read_text())
            assert note["dropped"] > 50_000

        asyncio.run(story())
        assert (spec.log_folder / "current.log").read_bytes().endswith(b"\n")
    finally:
        subprocess.run(["umount", "-l", str(spec.log_folder)], check=True)


def test_output_that_is_flooded_is_kept_under_the_cap(process_rig: ProcessRig) -> None:
    shell = "head -c 30000000 /dev/zero | tr '\\0' x; echo; echo last"

    async def story() -> None:
        engine, spec = process_rig.engine(), process_rig.spec("one", Program(shell))
        await ended(engine, await engine.start(spec))
        files = sorted(path.name for path in spec.log_folder.iterdir())
        assert files == ["1.log", "2.log", "current.log"]
        assert all(path.stat().st_size <= 10 * MIB for path in spec.log_folder.iterdir())
        assert (spec.log_folder / "current.log").read_text().endswith(" o last\n")

    asyncio.run(story())


def test_listing_twenty_replicas_costs_a_millisecond_or_two(
    process_rig: ProcessRig,
) -> None:
    async def story() -> None:
        engine = process_rig.engine()
        await asyncio.gather(*(engine.start(process_rig.spec(f"r{number}", LIVES)) for number in range(20)))
        await engine.inventory()
        costs = []
        for _ in range(20):
            began = time.process_time()
            assert len((await engine.inventory()).replicas) == 20
            costs.append(time.process_time() - began)
        assert min(costs) < 0.005
        await asyncio.gather(*(engine.stop(each, 0) for each in (await engine.inventory()).replicas))

    asyncio.run(story())


def test_images_are_refused_with_the_engine_that_has_them(process_rig: ProcessRig) -> None:
    with pytest.raises(EngineError, match="runs no images"):
        asyncio.run(process_rig.engine().resolve("a:b", print))


def test_another_agents_replicas_are_foreign(process_rig: ProcessRig) -> None:
    started = asyncio.run(process_rig.engine().start(process_rig.spec("one")))
    other = ProcessEngine(process_rig.folder / "replicas", "f" * 32, SystemClock())
    seen = asyncio.run(other.inventory())
    assert seen.replicas == ()
    assert [each.handle for each in seen.foreign] == [str(folder_of(process_rig, started))]
    with pytest.raises(StartRefused):
        asyncio.run(other.start(process_rig.spec("one")))
