"""A pretend host for tests and screenshots: replicas that are only values, living and failing by a script.

Nothing is started, and it says so. `SimulatedHost` is what outlives an engine object, as processes outlive an agent;
time passes with the clock that is given. Optionally each replica answers real HTTP on loopback, so that probes work.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from quarterdeck_agent.clock import Clock
from quarterdeck_agent.drivers.base import Foreign, Found, Inventory, Life, Progress, ReplicaSpec, Report, expand
from quarterdeck_agent.drivers.logfile import LogFile
from quarterdeck_agent.errors import EngineError, EngineUnresponsive, StartRefused

FIRST_PORT = 20000


@dataclass(frozen=True, slots=True)
class Script:
    """What becomes of a replica. Seconds count from its start; `None` means never.

    `ready_after` is when it begins to answer 200; `answer` is what it answers to a POST, by default what it was sent.
    """

    start_delay: float = 0.0
    ready_after: float | None = 0.0
    ends_after: float | None = None
    exit_code: int = 1
    out_of_memory: bool = False
    ignores_term: bool = False
    refused: str | None = None
    answer: object = None
    lines: tuple[str, ...] = ()


@dataclass(slots=True)
class Pretended:
    """One replica of the pretend host; the only thing here that changes."""

    found: Found
    script: Script
    log: LogFile
    server: asyncio.Server | None = None


@dataclass(slots=True)
class SimulatedHost:
    """Everything that a real host would keep while an agent restarts. `unresponsive` makes every call hang up."""

    replicas: dict[str, Pretended] = field(default_factory=dict)
    foreign: list[Foreign] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)
    unresponsive: bool = False
    started: int = 0


class SimulatedEngine:
    """Plays replicas by `script(spec)`. With `serve`, each listens on loopback inside this process and event loop."""

    name = "simulated"

    def __init__(
        self,
        clock: Clock,
        *,
        host: SimulatedHost | None = None,
        script: Callable[[ReplicaSpec], Script] = lambda _: Script(),
        serve: bool = False,
    ) -> None:
        self._clock, self._script, self._serve = clock, script, serve
        self.host = host or SimulatedHost()

    async def version(self) -> str:
        self._answer("tell its version")
        return "simulated (nothing runs)"

    async def inventory(self) -> Inventory:
        self._answer("list the replicas")
        for each in self.host.replicas.values():
            self._age(each)
        return Inventory(tuple(each.found for each in self.host.replicas.values()), tuple(self.host.foreign))

    async def resolve(self, image: str, report: Report) -> str:
        self._answer(f"resolve {image}")
        if image not in self.host.images:
            raise EngineError(f"Could not pull {image}: the simulated registry does not have it.", field="image")
        for done in (0, 50, 100):
            report(Progress(f"pulling {image}", done, 100))
        return self.host.images[image]

    async def start(self, spec: ReplicaSpec) -> Found:
        self._answer(f"start {spec.id}")
        known = self.host.replicas.get(spec.id)
        if known is not None:
            return self._age(known)
        script = self._script(spec)
        if script.start_delay:
            await asyncio.sleep(script.start_delay)
        if script.refused:
            raise StartRefused(f"Replica {spec.id} was refused by its script.", field=script.refused)
        return await self._begin(spec, script)

    async def stop(self, found: Found, grace: float) -> None:
        self._answer(f"stop {found.id}")
        known = self.host.replicas.get(found.id)
        if known is None or self._age(known).life is Life.EXITED:
            return
        number = signal.SIGKILL if known.script.ignores_term else signal.SIGTERM
        at = self._clock.now() + (grace if number == signal.SIGKILL else 0)
        self._end(known, killed_by=number, at=at)

    async def remove(self, found: Found) -> None:
        self._answer(f"remove {found.id}")
        known = self.host.replicas.get(found.id)
        if known is None:
            return
        if self._age(known).life is Life.RUNNING:
            raise EngineError(f"Replica {found.id} runs and cannot be removed.", hint="Stop it first.")
        del self.host.replicas[found.id]

    async def close(self) -> None:
        """Nothing is held open; servers belong to the replicas, which live on."""

    def crash(self, replica: str, *, exit_code: int | None = 1, killed_by: int | None = None) -> None:
        """End a replica now, as if by itself."""
        known = self.host.replicas[replica]
        known.script = replace(known.script, exit_code=exit_code if exit_code is not None else 0)
        self._end(known, killed_by=killed_by, at=self._clock.now())

    def is_ready(self, replica: str) -> bool:
        """Whether its script has it answer by now."""
        known = self.host.replicas[replica]
        found, after = self._age(known), known.script.ready_after
        return found.life is Life.RUNNING and after is not None and self._clock.now() >= (found.started or 0) + after

    def _answer(self, what: str) -> None:
        if self.host.unresponsive:
            raise EngineUnresponsive(f"The simulated engine did not {what}: its script has it hang.")

    async def _begin(self, spec: ReplicaSpec, script: Script) -> Found:
        self.host.started += 1
        port = FIRST_PORT + self.host.started
        known = Pretended(self._born(spec, port), script, LogFile(spec.log_folder))
        self.host.replicas[spec.id] = known
        if self._serve:
            known.server = await asyncio.start_server(lambda r, w: self._talk(spec.id, r, w), "127.0.0.1", 0)
            port = known.server.sockets[0].getsockname()[1]
            known.found = replace(known.found, address=("127.0.0.1", port))
        words = [
            expand(word, port=port, bundle=str(spec.bundle), name=spec.model or spec.deployment, python="python3")
            for word in spec.command
        ]
        known.log.write("a", f"simulated: nothing runs; would run {' '.join(words)}\n".encode())
        for line in script.lines:
            known.log.write("o", line.encode() + b"\n")
        known.log.close()
        return self._age(known)

    def _born(self, spec: ReplicaSpec, port: int) -> Found:
        return Found(
            id=spec.id,
            deployment=spec.deployment,
            revision=spec.revision,
            body=spec.body,
            version=spec.version,
            handle=f"simulated:{self.host.started}",
            life=Life.RUNNING,
            address=("127.0.0.1", port),
            started=self._clock.now(),
            gpus=spec.gpus,
            vram=spec.resources.vram if spec.gpus and not spec.resources.whole_gpus else None,
            exclusive=bool(spec.gpus) and spec.resources.whole_gpus,
        )

    def _age(self, known: Pretended) -> Found:
        """Let the script's end come when its time has come."""
        after, born = known.script.ends_after, known.found.started or 0.0
        if known.found.life is Life.RUNNING and after is not None and self._clock.now() >= born + after:
            self._end(known, killed_by=signal.SIGKILL if known.script.out_of_memory else None, at=born + after)
        return known.found

    def _end(self, known: Pretended, *, killed_by: int | None, at: float) -> None:
        known.found = replace(
            known.found,
            life=Life.EXITED,
            ended=at,
            exit_code=None if killed_by else known.script.exit_code,
            signal=int(killed_by) if killed_by else None,
            out_of_memory=known.script.out_of_memory and killed_by == signal.SIGKILL,
        )
        if known.server is not None:
            known.server.close()

    async def _talk(self, replica: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One HTTP/1.1 exchange: 200 when ready, else 503; a POST is answered by the script or with its own body."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(
                (int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0
            )
            body = await reader.readexactly(length)
            ready = self.is_ready(replica)
            answer = self.host.replicas[replica].script.answer
            if answer is not None:
                body = json.dumps(answer).encode()
            status = b"200 OK" if ready else b"503 Service Unavailable"
            writer.write(
                b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
                % (status, len(body), body)
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
