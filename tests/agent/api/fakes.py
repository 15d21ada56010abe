"""Parts behind the API that keep their promises in memory, and a real server on a real socket in front of them."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx

from quarterdeck_agent import protocol
from quarterdeck_agent.api.access import LocalToken
from quarterdeck_agent.api.app import build
from quarterdeck_agent.api.guard import Bounds
from quarterdeck_agent.api.ports import Parts
from quarterdeck_agent.api.serve import Server, Serving
from quarterdeck_agent.board import Board
from quarterdeck_agent.errors import Conflict, InvalidInput, NotFound
from tests.agent.api.builders import NOON, deployment, host_info

TOKEN = "qd_" + "t" * 43
T = TypeVar("T")


class FakeChanges:
    """Remembers every change by its operation id; a deployment `there` of generation 3 exists."""

    def __init__(self) -> None:
        self.made: dict[str, protocol.Operation] = {}
        self.previews = 0

    def preview(self, kind: str, name: str, request: Any) -> protocol.Preview:
        self.previews += 1
        return protocol.Preview(name, 3, "overlap", "because", None, (), (), (), "nothing happens", "qd deploy")

    def change(self, kind: str, name: str, request: Any, by: str, id: str, generation: int | None = None) -> Any:
        if id in self.made:
            return self.made[id]
        if kind != "deploy" and name != "there":
            raise NotFound(f"There is no deployment {name}", field="name")
        if generation not in (None, 3):
            raise Conflict("Somebody was first", operation="op-winner")
        state = protocol.OperationState.PENDING
        self.made[id] = protocol.Operation(id, kind, name, by, NOON, state, why=request.why)
        return self.made[id]


class FakePushes:
    def plan(self, request: protocol.PushRequest) -> protocol.PushPlan:
        wanted = tuple(protocol.BlobWanted(file.sha256, file.size, 0) for file in request.files)
        return protocol.PushPlan("0" * 64, "digits:1", wanted)

    def commit(self, request: protocol.PushRequest, by: str, operation: str) -> protocol.Version:
        return protocol.Version("0" * 64, "digits:1", "digits", "python", 0, request.files, NOON, by, request.config)

    def remove(self, reference: str, by: str, operation: str) -> None:
        raise NotFound(f"There is no version {reference}")


class FakeRecords:
    def revisions(self, deployment: str) -> tuple[protocol.Revision, ...]:
        if deployment != "there":
            return ()
        env = {"HF_TOKEN": "s3cret", "DB": "postgres://u:s3cret@host/db", "BATCH": "5"}
        return (protocol.Revision("there", 1, protocol.Spec("0" * 64, "digits:1", env=env), NOON, "ada", "op-1"),)

    def versions(self) -> tuple[protocol.Version, ...]:
        return (protocol.Version("0" * 64, "digits:1", "digits", "python", 0, (), NOON, "ada"),)

    def version(self, reference: str) -> protocol.Version:
        if reference in ("digits:1", "0" * 64):
            return self.versions()[0]
        raise NotFound(f"There is no version {reference}")

    def operations(self, limit: int = 100, target: str | None = None) -> tuple[protocol.Operation, ...]:
        return ()

    def operation(self, operation: str) -> protocol.Operation:
        raise NotFound(f"There is no operation {operation}")


class FakeBlobs:
    """Keeps what arrives, also of an upload that was cut."""

    def __init__(self) -> None:
        self.held: dict[str, bytearray] = {}
        self.cut = threading.Event()

    def offset(self, sha256: str) -> int:
        return len(self.held.get(sha256, b""))

    async def write(self, sha256: str, size: int, offset: int, chunks: AsyncIterator[bytes]) -> int:
        held = self.held.setdefault(sha256, bytearray())
        if offset != len(held):
            raise Conflict(f"The blob goes on at {len(held)}", field="offset")
        try:
            async for chunk in chunks:
                held += chunk
        except BaseException:
            self.cut.set()
            raise
        if len(held) == size and hashlib.sha256(held).hexdigest() != sha256:
            del self.held[sha256]
            raise InvalidInput("The bytes are not those of that digest", field="sha256")
        return len(held)


class FakeLogs:
    """Three lines, or with `follow` lines without end; raises for revision 404."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def lines(self, deployment: str, **query: Any) -> AsyncIterator[protocol.LogLine]:
        if query["revision"] == 404:
            raise NotFound("no such logs")
        try:
            for number in range(3):
                yield protocol.LogLine(NOON, deployment, 1, "r1", "stdout", f"line {number}")
            if query["follow"]:
                await asyncio.Event().wait()
        finally:
            self.closed.set()


class FakeCatalogue:
    def list(self) -> tuple[protocol.Runtime, ...]:
        return (protocol.Runtime("python", "Python", "v2", 8000, "/health", "/predict", ("torchscript",), ("docker",)),)


class FakeGpus:
    def trust(self, uuid: str, request: protocol.ChangeRequest, by: str, operation: str) -> protocol.Operation:
        if uuid != "GPU-1":
            raise NotFound(f"There is no GPU {uuid}", field="uuid")
        done = protocol.OperationState.SUCCEEDED
        return protocol.Operation(operation, "trust-gpu", uuid, by, NOON, done, why=request.why)


class FakeSeries:
    """One series; its step tells which was asked for, its only sample's maximum how many points."""

    async def names(self) -> tuple[protocol.SeriesName, ...]:
        return (protocol.SeriesName("host.cpu", "", "ratio"),)

    async def series(
        self,
        name: str,
        key: str,
        since: datetime | None = None,
        *,
        step: float | None = None,
        points: int | None = None,
    ) -> protocol.Series | None:
        sample = protocol.Sample(since or NOON, None, points)
        return protocol.Series(name, key, "ratio", (sample,), step or 1.0) if name == "host.cpu" else None


@dataclass
class Running:
    """A server that answers; `parts` are the fakes behind it."""

    path: Path
    parts: Parts
    loop: asyncio.AbstractEventLoop
    server: Server
    changes: FakeChanges
    blobs: FakeBlobs
    logs: FakeLogs
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, token: str | None = TOKEN, **more: Any) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        transport = httpx.HTTPTransport(uds=str(self.path), verify=False)
        client = httpx.Client(transport=transport, base_url="http://localhost", headers=headers, timeout=10, **more)
        self.clients.append(client)
        return client

    def publish(self, kind: protocol.DeltaKind, key: str, value: Any) -> None:
        async def on_loop() -> None:
            self.parts.board.publish(kind, key, value)

        self.run(on_loop())

    def run(self, work: Awaitable[T], within: float = 10) -> T:
        async def whole() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(whole(), self.loop).result(within)


def parts() -> Parts:
    board = Board(host_info())
    board.publish("deployment", "there", deployment("there"))
    return Parts(
        board=board,
        changes=FakeChanges(),
        pushes=FakePushes(),
        records=FakeRecords(),
        blobs=FakeBlobs(),
        logs=FakeLogs(),
        catalogue=FakeCatalogue(),
        series=FakeSeries(),
        gpus=FakeGpus(),
    )


@contextmanager
def running(
    folder: Path,
    serving: Serving | None = None,
    bounds: Bounds | None = None,
    change: Callable[[Parts], Parts] = lambda parts: parts,
) -> Iterator[Running]:
    """A server with fakes behind it, in a thread with a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    behind = change(replace(parts(), stop=asyncio.Event()))
    app = build(behind, LocalToken(TOKEN), bounds)
    server = Server(app, folder / "agent.sock", behind.stop, serving)
    changes, blobs, logs = behind.changes, behind.blobs, behind.logs
    assert isinstance(changes, FakeChanges)
    assert isinstance(blobs, FakeBlobs)
    assert isinstance(logs, FakeLogs)
    live = Running(folder / "agent.sock", behind, loop, server, changes, blobs, logs)
    try:
        live.run(server.start())
        yield live
    finally:
        for client in live.clients:
            client.close()
        live.run(server.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
