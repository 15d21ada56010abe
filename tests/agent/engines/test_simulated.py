"""The pretend host: it says that it is one, fails by its script, and answers HTTP so that probes work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from quarterdeck_agent.drivers.base import Life, Progress, ReplicaSpec
from quarterdeck_agent.drivers.simulated import Script, SimulatedEngine, SimulatedHost
from quarterdeck_agent.errors import EngineUnresponsive, StartRefused


@dataclass(slots=True)
class Hands:
    """A clock whose hands the test turns."""

    seconds: float = 100.0
    boot_id: str = "simulated"

    def now(self) -> float:
        return self.seconds

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)


def spec(folder: Path, name: str = "one") -> ReplicaSpec:
    return ReplicaSpec(name, "digits", 1, "b", "v", folder, ("serve", "--port", "{port}"), folder)


def always(script: Script) -> Callable[[ReplicaSpec], Script]:
    return lambda _: script


async def ask(address: tuple[str, int] | None, request: bytes) -> bytes:
    assert address is not None
    reader, writer = await asyncio.open_connection(*address)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    return answer


def test_it_says_that_nothing_runs(tmp_path: Path) -> None:
    async def story() -> None:
        engine = SimulatedEngine(Hands())
        assert "nothing runs" in await engine.version()
        await engine.start(spec(tmp_path))

    asyncio.run(story())
    assert "a simulated: nothing runs; would run serve --port 20001" in (tmp_path / "current.log").read_text()


def test_a_replica_ends_when_its_time_has_come_and_not_before(tmp_path: Path) -> None:
    async def story() -> None:
        clock = Hands()
        engine = SimulatedEngine(clock, script=always(Script(ends_after=30, exit_code=4)))
        await engine.start(spec(tmp_path))
        clock.seconds += 29
        assert (await engine.inventory()).replicas[0].life is Life.RUNNING
        clock.seconds += 100
        (found,) = (await engine.inventory()).replicas
        assert (found.life, found.exit_code, found.started, found.ended) == (Life.EXITED, 4, 100.0, 130.0)

    asyncio.run(story())


def test_it_answers_http_from_the_moment_it_is_ready(tmp_path: Path) -> None:
    async def story() -> None:
        clock = Hands()
        engine = SimulatedEngine(clock, script=always(Script(ready_after=5)), serve=True)
        found = await engine.start(spec(tmp_path))
        assert (await ask(found.address, b"GET / HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 503 ")
        clock.seconds += 5
        answer = await ask(found.address, b"POST /infer HTTP/1.1\r\nContent-Length: 2\r\n\r\n42")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\n42")
        await engine.stop(found, 0)
        with pytest.raises(OSError, match="Connect"):
            await ask(found.address, b"")

    asyncio.run(story())


def test_a_script_can_refuse_the_start_and_hang_the_engine(tmp_path: Path) -> None:
    async def story() -> None:
        host = SimulatedHost()
        with pytest.raises(StartRefused) as caught:
            await SimulatedEngine(Hands(), host=host, script=always(Script(refused="gpus"))).start(spec(tmp_path))
        assert caught.value.field == "gpus"
        host.unresponsive = True
        with pytest.raises(EngineUnresponsive):
            await SimulatedEngine(Hands(), host=host).inventory()

    asyncio.run(story())


def test_a_test_can_crash_a_replica_with_a_signal(tmp_path: Path) -> None:
    async def story() -> None:
        engine = SimulatedEngine(Hands())
        found = await engine.start(spec(tmp_path))
        engine.crash(found.id, killed_by=9)
        (after,) = (await engine.inventory()).replicas
        assert (after.life, after.exit_code, after.signal, after.out_of_memory) == (Life.EXITED, None, 9, False)

    asyncio.run(story())


def test_images_are_pulled_from_what_the_host_was_given() -> None:
    async def story() -> None:
        engine = SimulatedEngine(Hands(), host=SimulatedHost(images={"a:1": "a@sha256:00"}))
        told: list[Progress] = []
        assert await engine.resolve("a:1", told.append) == "a@sha256:00"
        assert told[-1].done == told[-1].total

    asyncio.run(story())
