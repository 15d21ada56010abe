"""What every engine promises, whichever it is: one suite against the simulated, the process and the docker engine."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from quarterdeck_agent.drivers.base import Found, Inventory, Life, ignore_progress
from quarterdeck_agent.drivers.simulated import Script
from quarterdeck_agent.errors import EngineError
from tests.agent.engines.rigs import (
    HUNGRY,
    KILLED,
    LIVES,
    MIB,
    STUBBORN,
    Program,
    Rig,
    ended,
    exits,
    limited,
    until,
)


def only(inventory: Inventory) -> Found:
    (found,) = inventory.replicas
    return found


def test_a_started_replica_is_listed_as_what_it_is(rig: Rig) -> None:
    async def story() -> None:
        engine, before = rig.engine(), rig.clock.now()
        started = await engine.start(rig.spec("one"))
        found = only(await engine.inventory())
        assert (found.id, found.handle) == (started.id, started.handle)
        assert (found.deployment, found.revision, found.body, found.version) == ("digits", 3, "b" * 64, "v" * 64)
        assert found.life is Life.RUNNING
        assert found.address is not None
        assert found.started is not None
        assert before - 0.1 <= found.started <= rig.clock.now() + 0.1
        assert found.ended is None
        assert found.exit_code is None
        await engine.close()

    asyncio.run(story())


def test_starting_an_id_again_returns_the_one_that_runs(rig: Rig) -> None:
    async def story() -> None:
        engine = rig.engine()
        first = await engine.start(rig.spec("one"))
        second = await engine.start(rig.spec("one"))
        assert second.handle == first.handle
        assert only(await engine.inventory()).handle == first.handle
        await engine.close()

    asyncio.run(story())


def test_starting_one_id_twice_at_once_makes_one_replica(rig: Rig) -> None:
    async def story() -> None:
        engine, spec = rig.engine(), rig.spec("one")
        outcomes = await asyncio.gather(engine.start(spec), engine.start(spec), return_exceptions=True)
        handles = {each.handle for each in outcomes if isinstance(each, Found)}
        assert [each for each in outcomes if not isinstance(each, Found)] == []
        assert handles == {only(await engine.inventory()).handle}
        await engine.close()

    asyncio.run(story())


def test_a_replica_asked_to_stop_ends_by_the_term_signal_well_before_the_grace_is_over(rig: Rig) -> None:
    async def story() -> None:
        engine = rig.engine()
        found = await engine.start(rig.spec("one"))
        began = time.monotonic()
        await engine.stop(found, 30)
        assert time.monotonic() - began < 15
        assert (await ended(engine, found)).signal == 15
        await engine.close()

    asyncio.run(story())


def test_a_replica_that_ignores_the_term_signal_is_killed_after_the_grace(rig: Rig) -> None:
    async def story() -> None:
        engine = rig.engine()
        found = await engine.start(rig.spec("one", STUBBORN))
        began = time.monotonic()
        await engine.stop(found, 1)
        if rig.kind != "simulated":
            assert time.monotonic() - began >= 0.9
        after = await ended(engine, found)
        assert after.signal == 9
        assert not after.out_of_memory
        await engine.close()

    asyncio.run(story())


def test_stopping_what_has_ended_and_removing_what_is_gone_are_fine(rig: Rig) -> None:
    async def story() -> None:
        engine = rig.engine()
        found = await engine.start(rig.spec("one", exits(0)))
        after = await ended(engine, found)
        await engine.stop(after, 1)
        await engine.remove(after)
        assert (await engine.inventory()).replicas == ()
        await engine.remove(after)
        await engine.stop(after, 1)
        await engine.close()

    asyncio.run(story())


def test_a_running_replica_cannot_be_removed(rig: Rig) -> None:
    async def story() -> None:
        engine = rig.engine()
        found = await engine.start(rig.spec("one"))
        with pytest.raises(EngineError, match="runs and cannot be removed"):
            await engine.remove(found)
        assert only(await engine.inventory()).life is Life.RUNNING
        await engine.close()

    asyncio.run(story())


def test_the_logs_stay_when_a_replica_is_removed(rig: Rig) -> None:
    async def story() -> None:
        engine, spec = rig.engine(), rig.spec("one", Program("echo last words", Script(ends_after=0.0)))
        await engine.remove(await ended(engine, await engine.start(spec)))
        assert spec.log_folder.is_dir()
        # Of a container the log collector writes them, not the engine.
        assert rig.kind == "docker" or (spec.log_folder / "current.log").exists()
        await engine.close()

    asyncio.run(story())


def test_another_engine_object_adopts_what_runs(rig: Rig) -> None:
    async def story() -> None:
        first = rig.engine()
        started = await first.start(rig.spec("one"))
        await first.close()
        second = rig.engine()
        found = only(await second.inventory())
        assert (found.handle, found.life, found.address) == (started.handle, Life.RUNNING, started.address)
        assert (await second.start(rig.spec("one"))).handle == started.handle
        await second.stop(found, 5)
        assert (await ended(second, found)).life is Life.EXITED
        await second.close()

    asyncio.run(story())


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_code_is_told_by_an_engine_object_that_did_not_start_it(rig: Rig, code: int) -> None:
    async def story() -> None:
        first = rig.engine()
        started = await first.start(rig.spec("one", exits(code, after=0.2)))
        await first.close()
        second = rig.engine()
        after = await ended(second, started)
        assert (after.exit_code, after.signal, after.out_of_memory) == (code, None, False)
        assert after.started is not None
        assert after.ended is not None
        assert after.started <= after.ended <= rig.clock.now() + 0.1
        await second.close()

    asyncio.run(story())


def test_a_deadly_signal_is_told(real_rig: Rig) -> None:
    async def story() -> None:
        engine = real_rig.engine()
        after = await ended(engine, await engine.start(real_rig.spec("one", KILLED)))
        assert (after.exit_code, after.signal, after.out_of_memory) == (None, 9, False)
        await engine.close()

    asyncio.run(story())


def test_memory_beyond_the_limit_is_told_as_out_of_memory(rig: Rig) -> None:
    async def story() -> None:
        engine = rig.engine()
        spec = rig.spec("one", HUNGRY, resources=limited(64 * MIB))
        started = await engine.start(spec)
        if rig.kind == "process" and "memory" not in started.cgroups and "unified" not in started.cgroups:
            pytest.skip("this host lets the agent make no memory cgroup")
        after = await ended(engine, started)
        assert after.out_of_memory
        assert after.signal == 9
        await engine.close()

    asyncio.run(story())


def test_what_cannot_be_executed_is_told_at_once_or_as_an_end(real_rig: Rig) -> None:
    async def story() -> None:
        engine = real_rig.engine()
        try:
            found = await engine.start(real_rig.spec("one", command=("/no/such/program",)))
        except EngineError as error:
            assert "/no/such/program" in error.detail
            assert (await engine.inventory()).replicas == ()
        else:
            assert (await ended(engine, found)).exit_code == 127
            assert "/no/such/program" in real_rig.output(found) or real_rig.kind == "docker"
        await engine.close()

    asyncio.run(story())


def test_placeholders_environment_and_port_reach_the_replica(real_rig: Rig) -> None:
    async def story() -> None:
        engine = real_rig.engine()
        shell = (
            'echo "port {port} $PORT" name {name} where "$WHERE" plain "$PLAIN"; cat {bundle}/weights; exec sleep 300'
        )
        spec = real_rig.spec("one", Program(shell), env={"WHERE": "{bundle}:{port}", "PLAIN": "a {brace} b"})
        found = await engine.start(spec)
        assert found.address is not None
        port = found.address[1]

        async def printed() -> bool:
            return "numbers" in real_rig.output(found)

        await until(printed, what="the output")
        bundle = "/model" if real_rig.kind == "docker" else str(spec.bundle)
        expected = f"port {port} {port} name digits where {bundle}:{port} plain a {{brace}} b"
        assert expected in real_rig.output(found)
        await engine.close()

    asyncio.run(story())


def test_the_agents_own_environment_stays_its_own(real_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_SECRET", "canary-7f3a")

    async def story() -> None:
        engine = real_rig.engine()
        after = await ended(engine, await engine.start(real_rig.spec("one", Program("env; echo whole"))))
        assert "whole" in real_rig.output(after)
        assert "canary-7f3a" not in real_rig.output(after)
        await engine.close()

    asyncio.run(story())


def test_a_replica_cannot_write_to_its_bundle(real_rig: Rig) -> None:
    async def story() -> None:
        engine, spec = (
            real_rig.engine(),
            real_rig.spec("one", Program("echo x > {bundle}/weights; echo y > {bundle}/new; true")),
        )
        after = await ended(engine, await engine.start(spec))
        assert after.exit_code == 0
        assert [each.name for each in spec.bundle.iterdir()] == ["weights"]
        assert (spec.bundle / "weights").read_text() == "numbers\n"
        await engine.close()

    asyncio.run(story())


def test_a_replica_inherits_no_open_file(real_rig: Rig) -> None:
    async def story() -> None:
        engine = real_rig.engine()
        # The fourth is the folder that ls itself has open.
        after = await ended(engine, await engine.start(real_rig.spec("one", Program("ls /proc/self/fd; echo whole"))))
        said = [line.split()[-1] for line in real_rig.output(after).splitlines()]
        assert said == ["0", "1", "2", "3", "whole"]
        await engine.close()

    asyncio.run(story())


def test_foreign_things_are_told_and_left_alone(rig: Rig) -> None:
    async def story() -> None:
        engine = rig.engine()
        handle = rig.plant()
        mine = await engine.start(rig.spec("one"))
        inventory = await engine.inventory()
        assert [each.id for each in inventory.replicas] == [mine.id]
        assert handle in [each.handle for each in inventory.foreign]
        posing = replace(mine, id="somebody", handle=handle)
        for attack in (engine.stop(posing, 0), engine.remove(posing)):
            try:
                await attack
            except EngineError:
                continue
        assert rig.planted_is_intact()
        await engine.close()

    asyncio.run(story())


def test_an_image_that_nobody_has_is_an_error_with_a_reason(rig: Rig) -> None:
    async def story() -> None:
        engine = rig.engine()
        with pytest.raises(EngineError) as caught:
            await engine.resolve("127.0.0.1:1/no/such:tag", ignore_progress)
        assert caught.value.field == "image"
        assert "127.0.0.1:1/no/such:tag" in caught.value.detail
        await engine.close()

    asyncio.run(story())


def test_the_engine_tells_its_version(rig: Rig) -> None:
    async def story() -> None:
        engine = rig.engine()
        assert rig.kind in (await engine.version()).lower()
        await engine.close()

    asyncio.run(story())


def test_many_replicas_live_side_by_side(rig: Rig) -> None:
    async def story() -> None:
        engine = rig.engine()
        started = [await engine.start(rig.spec(f"r{number}", LIVES)) for number in range(3)]
        addresses = {each.address for each in started}
        assert len(addresses) == 3
        assert {each.id for each in (await engine.inventory()).replicas} == {each.id for each in started}
        await engine.close()

    asyncio.run(story())
