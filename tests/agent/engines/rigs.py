"""One rig an engine: how the contract suite makes engines of a kind, replicas for them, and looks at what came out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from quarterdeck_agent.clock import SystemClock
from quarterdeck_agent.drivers.base import Engine, Found, Life, ReplicaSpec, Resources
from quarterdeck_agent.drivers.docker import DockerEngine
from quarterdeck_agent.drivers.process import ProcessEngine
from quarterdeck_agent.drivers.simulated import Script, SimulatedEngine, SimulatedHost
from tests import images

MIB = 1 << 20
NEVER_ENDS = Script()


@dataclass(frozen=True, slots=True)
class Program:
    """What a replica does: as a shell script, and as a script of the simulated engine."""

    shell: str
    simulated: Script = NEVER_ENDS


LIVES = Program("exec sleep 300")
STUBBORN = Program("trap '' TERM; while :; do sleep 1; done", Script(ignores_term=True))
HUNGRY = Program("exec dd if=/dev/zero of=/dev/null bs=200M count=5", Script(ends_after=0.0, out_of_memory=True))
KILLED = Program("kill -9 $$", Script(ends_after=0.0, out_of_memory=False))


def exits(code: int, after: float = 0.0) -> Program:
    return Program(f"sleep {after}; exit {code}" if after else f"exit {code}", Script(ends_after=after, exit_code=code))


class Rig(Protocol):
    kind: str
    clock: SystemClock

    def engine(self) -> Engine: ...

    def spec(self, name: str, program: Program = LIVES, **fields: Any) -> ReplicaSpec: ...

    def output(self, found: Found) -> str: ...

    def plant(self) -> str:
        """Put something there that claims to be ours and is not; returns its handle."""

    def planted_is_intact(self) -> bool: ...


class Base:
    """What all rigs share: a folder, an instance id, and specs made from one default."""

    def __init__(self, folder: Path, instance: str) -> None:
        self.folder, self.instance, self.clock = folder, instance, SystemClock()
        self.bundle = folder / "bundle"
        self.bundle.mkdir()
        (self.bundle / "weights").write_text("numbers\n")

    def spec(self, name: str, program: Program = LIVES, **fields: Any) -> ReplicaSpec:
        logs = self.folder / "logs" / name
        logs.mkdir(parents=True, exist_ok=True)
        default = ReplicaSpec(
            id=f"{self.instance[:6]}-{name}",
            deployment="digits",
            revision=3,
            body="b" * 64,
            version="v" * 64,
            bundle=self.bundle,
            command=("sh", "-c", program.shell),
            log_folder=logs,
        )
        return replace(default, **fields)


class SimulatedRig(Base):
    kind = "simulated"

    def __init__(self, folder: Path, instance: str) -> None:
        super().__init__(folder, instance)
        self.host = SimulatedHost()
        self.scripts: dict[str, Script] = {}

    def engine(self) -> Engine:
        return SimulatedEngine(self.clock, host=self.host, script=lambda spec: self.scripts[spec.id])

    def spec(self, name: str, program: Program = LIVES, **fields: Any) -> ReplicaSpec:
        spec = super().spec(name, program, **fields)
        self.scripts[spec.id] = program.simulated
        return spec

    def output(self, found: Found) -> str:
        return (self.folder / "logs" / found.id.partition("-")[2] / "current.log").read_text()

    def plant(self) -> str:
        from quarterdeck_agent.drivers.base import Foreign

        self.host.foreign.append(Foreign("somebody", "else's"))
        return "somebody"

    def planted_is_intact(self) -> bool:
        return bool(self.host.foreign)


class ProcessRig(Base):
    kind = "process"

    def engine(self) -> Engine:
        return ProcessEngine(self.folder / "replicas", self.instance, self.clock)

    def output(self, found: Found) -> str:
        path = self.folder / "logs" / found.id.partition("-")[2] / "current.log"
        return path.read_text() if path.exists() else ""

    def plant(self) -> str:
        folder = self.folder / "replicas" / "somebody"
        folder.mkdir(parents=True)
        (folder / "replica.json").write_text('{"instance": "another", "id": "somebody"}')
        return str(folder)

    def planted_is_intact(self) -> bool:
        return (self.folder / "replicas" / "somebody" / "replica.json").exists()


class DockerRig(Base):
    kind = "docker"

    def __init__(self, folder: Path, instance: str, image: str) -> None:
        super().__init__(folder, instance)
        self.image = image
        self.planted = f"{instance[:6]}-foreign"

    def engine(self) -> Engine:
        return DockerEngine(images.SOCKET, self.instance, self.clock)

    def spec(self, name: str, program: Program = LIVES, **fields: Any) -> ReplicaSpec:
        return super().spec(name, program, **{"image": self.image, **fields})

    def output(self, found: Found) -> str:
        return images.docker("logs", found.handle)

    def plant(self) -> str:
        words = ("--label", f"quarterdeck.owner={self.instance}", "--label", "quarterdeck.replica=somebody")
        return images.docker(
            "run", "-d", "--network", "none", "--name", self.planted, *words, self.image, "sleep", "300"
        )

    def planted_is_intact(self) -> bool:
        return images.docker("inspect", "-f", "{{.State.Running}}", self.planted, check=False) == "true"

    def clear(self) -> None:
        """Remove every container and the network of this rig, whatever the test left."""
        # By name as well: a test may have had the labels changed.
        filters = (f"label=quarterdeck.owner={self.instance}", f"name={self.instance[:6]}-")
        left = [each for key in filters for each in images.docker("ps", "-aq", "--filter", key).split()]
        if left:
            images.docker("rm", "-f", *left, check=False)
        # By id: a defect may have made several of one name.
        networks = images.docker("network", "ls", "-q", "--filter", f"label=quarterdeck.owner={self.instance}").split()
        if networks:
            images.docker("network", "rm", *networks, check=False)


async def until(look: Callable[[], Awaitable[Any]], *, seconds: float = 20.0, what: str = "it") -> Any:
    """Wait for a truthy answer."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await look()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds} s"
        await asyncio.sleep(0.05)


async def ended(engine: Engine, found: Found) -> Found:
    """The replica once it has ended."""

    async def look() -> Found | None:
        return next(
            (each for each in (await engine.inventory()).replicas if each.id == found.id and each.life is Life.EXITED),
            None,
        )

    answer = await until(look, what=f"the end of {found.id}")
    assert isinstance(answer, Found)
    return answer


async def clear(engine: Engine) -> None:
    """Stop and remove everything of this engine."""
    for found in (await engine.inventory()).replicas:
        await engine.stop(found, 0)
        await engine.remove(found)
    await engine.close()


def limited(memory: int) -> Resources:
    return Resources(memory=memory)
