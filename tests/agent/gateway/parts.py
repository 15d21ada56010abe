"""Small real parts for the gateway's tests: an upstream server, a client, a load, a wait with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from quarterdeck_agent.drivers.base import RoutingResources
from quarterdeck_agent.drivers.envoy import EnvoyGateway
from quarterdeck_agent.routing import Route, resources


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def configured(gateway: EnvoyGateway, *routes: Route) -> RoutingResources:
    host, port = gateway.url.removeprefix("http://").split(":")
    return resources(routes, host=host, port=int(port), access_log=gateway.access_log, placeholder=gateway.placeholder)


async def until(condition: Callable[[], bool], deadline: float = 20.0) -> None:
    ends = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < ends, "the condition did not come true in time"
        await asyncio.sleep(0.01)


@dataclass
class Upstream:
    """A replica: answers with its name and what it got. `/wait` answers once `release` is set, `/drop` hangs up,
    `/sse` sends events until `finish` is set, `/ws` switches protocols and echoes bytes.
    """

    name: str
    release: asyncio.Event = field(default_factory=asyncio.Event)
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    running: int = 0
    most: int = 0
    served: int = 0
    heads: list[str] = field(default_factory=list)
    address: tuple[str, int] = ("", 0)
    open: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[Upstream]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.address = server.sockets[0].getsockname()[:2]
        try:
            yield self
        finally:
            self.release.set()
            self.finish.set()
            server.close()
            for writer in self.open.values():
                writer.transport.abort()
            if self.open:
                await asyncio.wait(self.open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open[task] = writer
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._one(reader, writer):
                pass
        writer.close()
        del self.open[task]

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        body = await read_body(reader, head)
        path = head.split(" ")[1]
        self.running += 1
        self.most = max(self.most, self.running)
        self.served += 1
        try:
            return await self._answer(path, body, reader, writer)
        finally:
            self.running -= 1

    async def _answer(self, path: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if path == "/drop":
            return False
        if path == "/ws":
            await self._echo(reader, writer)
            return False
        if path == "/sse":
            await self._stream(writer)
            return True
        if path == "/wait":
            await self.release.wait()
        text = f"{self.name} {path} {len(body)}".encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))
        await writer.drain()
        return True

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        while data := await reader.read(4096):
            writer.write(data)

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while not self.finish.is_set():
            event = f"data: {self.name}\n\n".encode()
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(b"5\r\nend\n\n\r\n0\r\n\r\n")
        await writer.drain()


async def read_body(reader: asyncio.StreamReader, head: str) -> bytes:
    headers = parse_headers(head)
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return body
    return await reader.readexactly(int(headers.get("content-length", "0")))


def parse_headers(head: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in head.split("\r\n")[1:] if line)
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection to the gateway, kept alive."""

    def __init__(self, gateway: EnvoyGateway) -> None:
        self._port = int(gateway.url.rpartition(":")[2])

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def send(self, path: str, *, body: bytes = b"", **headers: str) -> str:
        """Send one request and return the head of its answer."""
        fields = {"host": "gateway.test", "content-length": str(len(body))}
        fields |= {key.replace("_", "-"): value for key, value in headers.items()}
        head = "".join(f"{key}: {value}\r\n" for key, value in fields.items())
        method = "POST" if body else "GET"
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def ask(self, path: str, *, body: bytes = b"", **headers: str) -> Answer:
        async with asyncio.timeout(30):
            head = await self.send(path, body=body, **headers)
            return Answer(int(head.split(" ")[1]), parse_headers(head), await read_body(self.reader, head))


async def ask(gateway: EnvoyGateway, path: str, *, body: bytes = b"", **headers: str) -> Answer:
    async with Client(gateway) as client:
        return await client.ask(path, body=body, **headers)


@dataclass
class Load:
    """Clients that ask one after the other until stopped, and what they got."""

    gateway: EnvoyGateway
    path: str
    answers: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    stopped: bool = False

    @contextlib.asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[Load]:
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._one())
            try:
                yield self
            finally:
                self.stopped = True

    @property
    def count(self) -> int:
        return sum(self.answers.values())

    async def _one(self) -> None:
        async with Client(self.gateway) as client:
            while not self.stopped:
                answer = await client.ask(self.path)
                if answer.status == 200:
                    who = answer.body.decode().split(" ")[0]
                    self.answers[who] = self.answers.get(who, 0) + 1
                else:
                    self.failures.append(f"{answer.status} {answer.body!r}")
