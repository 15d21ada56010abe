"""A simulated agent for the console's tests: it speaks `/v1` over a real Unix socket and runs nothing.

Every value is fixed, so that what the console prints can be compared byte by byte; tests change `answers` and the
switches. It runs in a thread of its own, and can be told to stall, to cut streams and to be gone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import msgspec

from quarterdeck_agent import protocol as p

AT = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
TOKEN = "simulated-token"
ID = "0123456789abcdef" * 4

VERSION = p.Version(
    id=ID, label="digits:2", name="digits", runtime="torchscript", size=2048,
    files=(p.ManifestFile("model.pt", 2048, "ab" * 32),), created_at=AT, by="ada", formats=("torchscript",),
)  # fmt: skip
SPEC = p.Spec(version=ID, label="digits:2")
STEPS = (
    p.StepRecord("start replica", "done", AT, 1.25),
    p.StepRecord("golden requests", "done", AT + timedelta(seconds=2), 0.08, "3 of 3 passed"),
)
DEPLOYMENT = p.DeploymentStatus(
    name="digits", generation=2, state=p.DeploymentState.SERVING, summary="serving revision 2", wanted_revision=2,
    live_revision=2, label="digits:2", version=ID, replicas_wanted=1, replicas_ready=1,
    endpoint="http://127.0.0.1:9/digits", predict_path="/v2/models/digits/infer", since=AT, by="ada", operation="op-2",
    replicas=(p.Replica("r-1", "digits", 2, p.ReplicaState.READY, "process", "4711:99", started_at=AT),),
)  # fmt: skip
REVISION = p.Revision(
    deployment="digits", number=2, spec=SPEC, created_at=AT, by="ada", operation="op-2", why="better sevens",
    handover="overlap", handover_why="both fit", outcome=p.RevisionOutcome.SERVING, served_at=AT, steps=STEPS,
)  # fmt: skip
OPERATION = p.Operation(
    id="op-2", kind="deploy", target="digits", by="ada", at=AT, state=p.OperationState.SUCCEEDED,
    summary="deploy digits:2", revision=2, steps=STEPS, finished_at=AT + timedelta(seconds=3),
)  # fmt: skip
INFO = p.HostInfo(
    name="box", instance="c0ffee", agent_version="0.1.0", os="Debian 12", kernel="6.1", architecture="x86_64", cpus=2,
    memory_total=8 << 30, boot_id="b", started_at=AT, engine="simulated", gateway_url="http://127.0.0.1:9",
    data_folder="/var/lib/quarterdeck",
)  # fmt: skip
STATUS = p.HostStatus(
    info=INFO, gauges=p.HostGauges(at=AT, cpu=0.25, memory_total=8 << 30, memory_used=2 << 30),
    parts=(p.Part("engine", p.PartState.OK, AT, "simulated"),), deployments=(DEPLOYMENT,),
    traffic=(p.Traffic("digits", 2, 1.0, rate=12.5, errors=0.0, p95=0.004),), operations=(OPERATION,),
    versions=(VERSION,),
)  # fmt: skip
GIB = 1 << 30
XID = p.XidEvent(AT, 79, "the GPU fell off the bus", "reboot the host")
GPU_STATUS = replace(
    STATUS,
    gpus=(
        p.Gpu(0, "GPU-0", "NVIDIA H100 80GB HBM3", 80 * GIB, 47 * GIB, 0.71, 64.0, 512.0, 700.0, 33 * GIB),
        p.Gpu(1, "GPU-1", "NVIDIA A100-SXM4-80GB", 80 * GIB, 8 * GIB, None, 41.0, 98.5, 400.0, mig=True),
        p.Gpu(
            1, "MIG-1-0", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10 * GIB, 8 * GIB, parent="GPU-1", profile="1g.10gb",
            instance=0,
        ),
        p.Gpu(
            2, "GPU-2", "NVIDIA H100 80GB HBM3", health=p.GpuHealth.LOST,
            why="Xid 79 at 12:00 UTC on 31 Jan: the GPU fell off the bus; drain the host and reboot",
        ),
    ),
    gpu_facts=(
        p.GpuFacts("GPU-0", "00000000:18:00.0", "570.86.15", "12.8", (9, 0), ecc_enabled=True, ecc_corrected=0),
        p.GpuFacts("GPU-2", "00000000:1A:00.0", xids=(XID,)),
    ),
    gpu_uses=(
        p.GpuUse(
            "GPU-0",
            (p.GpuProcess(4711, 40 * GIB, 0.5, user="alice", command="python"),
             p.GpuProcess(99, 4 * GIB, user="1000", command="python", replica="r-1", deployment="digits", revision=2)),
            unexplained=3 * GIB,
        ),
        p.GpuUse("MIG-1-0", (p.GpuProcess(812, None, user="bo", command="jupyter"),), 0),
    ),
)  # fmt: skip
PREVIEW = p.Preview(
    deployment="digits", generation=2, handover="overlap", why="both fit in memory", expected_pause=None,
    changes=(p.Change("version", "digits:1", "digits:2"),), steps=("start revision 3", "switch", "drain revision 2"),
    warnings=("no golden requests",), if_it_fails="revision 2 goes on serving", command="qd deploy digits:2",
)  # fmt: skip
RUNTIME = p.Runtime(
    "torchscript", "TorchScript", "oip-v2", 8000, "/v2/health/ready", "/v2/models/{name}/infer", ("torchscript",),
    ("process", "docker"),
)  # fmt: skip
CHECKS = (p.Check("engine", "ok", "simulated"), p.Check("disk", "warning", "3 % free", "make room"))
SERIES = {
    "gpu.utilisation": (
        "ratio",
        (p.Sample(AT, 0.25), p.Sample(AT + timedelta(minutes=1), None), p.Sample(AT + timedelta(minutes=2), 0.5, 0.75)),
        60.0,
    ),
    "gpu.memory": ("bytes", (p.Sample(AT, 40.0 * GIB), p.Sample(AT + timedelta(minutes=1), 44.0 * GIB)), 60.0),
}  # fmt: skip
LINES = tuple(
    p.LogLine(AT + timedelta(seconds=number), "digits", 2, "r-1", "stdout", f"line {number}") for number in range(5)
)


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """What to say: JSON of a value, a problem, or a stream of bytes."""

    value: Any = None
    status: int = 200
    stream: AsyncIterator[bytes] | None = None
    media: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


def problem(status: int, code: str, detail: str, **more: Any) -> Reply:
    """A problem document as the agent sends it."""
    told = p.Problem("about:blank", code, status, code, detail, **more)
    return Reply(told, status, media="application/problem+json")


Handler = Callable[[Request], Awaitable[Reply]]


@dataclass
class FakeAgent:
    """The simulated agent; `answers` overrides any `METHOD path`. Use as a context."""

    folder: Path
    answers: dict[str, Reply | Handler] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    status: p.HostStatus = STATUS
    operation: p.Operation = OPERATION
    lines: tuple[p.LogLine, ...] = LINES
    blobs: dict[str, bytearray] = field(default_factory=dict)
    cut_uploads_after: list[int] = field(default_factory=list)
    stall: bool = False
    heartbeat: float | None = None
    """Seconds between empty lines on logs; `None` is an agent that knows of no such thing."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket = self.folder / "agent.sock"
        (self.folder / "token").write_text(TOKEN + "\n")
        (self.folder / "token").chmod(0o600)
        self.changed = threading.Condition()
        self.versions: dict[str, p.Version] = {}

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def __enter__(self) -> FakeAgent:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self.socket.unlink(missing_ok=True)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        """Wait until something has happened here, looked at after every request."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds), "the simulated agent did not see it happen"

    def asked(self, start: str) -> list[Request]:
        return [each for each in self.requests if f"{each.method} {each.path}".startswith(start)]

    def push_event(self, *deltas: p.Delta) -> None:
        """Send deltas to every watcher."""
        self._loop.call_soon_threadsafe(self._publish, deltas)

    def cut_streams(self) -> None:
        """Cut every connection that is open, without a word."""
        self._loop.call_soon_threadsafe(self._abort)

    # --- underneath ---

    def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._watchers: set[asyncio.Queue[tuple[p.Delta, ...]]] = set()
        self._sequence = 0
        server = await asyncio.start_unix_server(self._connection, self.socket, limit=1 << 20)
        ready.set()
        await self._stop.wait()
        server.close()
        self._abort()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._exchange(reader, writer)
        except (ConnectionError, h11.RemoteProtocolError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = h11.Connection(h11.SERVER)
        request, body = None, bytearray()
        while True:
            event = wire.next_event()
            if event is h11.NEED_DATA:
                wire.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += event.data
                if self.cut_uploads_after and len(body) >= self.cut_uploads_after[0] and request is not None:
                    self.cut_uploads_after.pop(0)
                    self._keep(request.target.decode(), bytes(body))
                    writer.transport.abort()
                    return
            else:
                break
        if request is None:
            return
        address = urlsplit(request.target.decode())
        seen = Request(
            request.method.decode(), unquote(address.path), {k: v[0] for k, v in parse_qs(address.query).items()},
            {name.decode().lower(): value.decode() for name, value in request.headers}, bytes(body),
        )  # fmt: skip
        reply = await self._reply(seen)
        with self.changed:
            self.requests.append(seen)
            self.changed.notify_all()
        await self._send(wire, writer, reply)

    async def _send(self, wire: h11.Connection, writer: asyncio.StreamWriter, reply: Reply) -> None:
        def out(event: Any) -> None:
            writer.write(wire.send(event) or b"")

        raw = reply.value if isinstance(reply.value, bytes) else msgspec.json.encode(reply.value)
        headers = [("content-type", reply.media), ("connection", "close"), *reply.headers]
        if reply.stream is None:
            headers.append(("content-length", str(len(raw))))
        out(h11.Response(status_code=reply.status, headers=headers))
        if reply.stream is None:
            out(h11.Data(data=raw))
        else:
            await writer.drain()
            async for chunk in reply.stream:
                out(h11.Data(data=chunk))
                await writer.drain()
        out(h11.EndOfMessage())
        await writer.drain()

    async def _reply(self, seen: Request) -> Reply:
        if self.stall:
            await asyncio.sleep(3600)
        if seen.headers.get("authorization") != f"Bearer {TOKEN}":
            return problem(401, "not_allowed", "There is no valid token with the request")
        chosen = self.answers.get(f"{seen.method} {seen.path}")
        if isinstance(chosen, Reply):
            return chosen
        if chosen is not None:
            return await chosen(seen)
        return self._usual(seen)

    def _usual(self, seen: Request) -> Reply:
        detail = p.DeploymentDetail(DEPLOYMENT, (REVISION,), VERSION, STATUS.traffic)
        fixed: dict[str, Any] = {
            "/v1/hello": p.Hello("quarterdeck", "0.1.0", ("v1",), "box", "c0ffee", AT),
            "/v1/status": self.status,
            "/v1/deployments": self.status.deployments,
            "/v1/deployments/digits": detail,
            "/v1/deployments/digits/revisions": (REVISION,),
            "/v1/versions": (VERSION,),
            "/v1/versions/digits:2": VERSION,
            "/v1/operations": (self.operation,),
            f"/v1/operations/{self.operation.id}": self.operation,
            "/v1/runtimes": (RUNTIME,),
            "/v1/doctor": CHECKS,
        }
        if seen.method == "GET" and seen.path in fixed:
            return Reply(fixed[seen.path])
        if seen.path == "/v1/series" and seen.query["name"] in SERIES:
            return Reply(p.Series(seen.query["name"], seen.query["key"], *SERIES[seen.query["name"]]))
        if seen.path == "/v1/watch":
            return Reply(stream=self._watch(), media="text/event-stream")
        if seen.path == "/v1/deployments/digits/logs":
            headers = ((p.HEARTBEAT_HEADER, f"{self.heartbeat:g}"),) if self.heartbeat else ()
            return Reply(stream=self._logs(seen), media="application/x-ndjson", headers=headers)
        if seen.path in ("/v1/pushes", "/v1/versions") or seen.path.startswith("/v1/blobs/"):
            return self._pushing(seen)
        if seen.path.startswith("/v1/gpus/") and seen.path.endswith("/trust") and seen.method == "POST":
            done = p.OperationState.SUCCEEDED
            return Reply(replace(self.operation, kind="trust-gpu", target=seen.path.split("/")[3], state=done), 202)
        if seen.path.startswith("/v1/deployments/digits") and seen.method in ("PUT", "POST", "DELETE"):
            return Reply(PREVIEW) if seen.query.get("plan") == "true" else Reply(self.operation, 202)
        return problem(404, "not_found", "There is no such thing here", hint="`qd status` lists what there is.")

    def _pushing(self, seen: Request) -> Reply:
        if seen.path.startswith("/v1/blobs/"):
            sha256 = self._keep(f"{seen.path}?offset={seen.query['offset']}", seen.body)
            if hashlib.sha256(self.blobs[sha256]).hexdigest() != sha256:
                return problem(422, "invalid_input", "the bytes are not what was announced", field="sha256")
            return Reply(p.BlobWanted(sha256, len(self.blobs[sha256]), len(self.blobs[sha256])))
        request = msgspec.json.decode(seen.body, type=p.PushRequest)
        label = f"{request.config['name']}:{request.config['version']}"
        if seen.path == "/v1/versions":
            self.versions[label] = replace(
                VERSION, label=label, files=request.files, size=sum(f.size for f in request.files)
            )
            return Reply(self.versions[label], 201)
        wanted = {file.sha256: file.size for file in request.files}
        missing = tuple(
            p.BlobWanted(sha256, size, len(self.blobs.get(sha256, b"")))
            for sha256, size in wanted.items()
            if len(self.blobs.get(sha256, b"")) < size or sha256 not in self.blobs
        )
        return Reply(p.PushPlan(ID, label, missing, self.versions.get(label)))

    def _keep(self, target: str, body: bytes) -> str:
        address = urlsplit(target)
        sha256 = address.path.rpartition("/")[2]
        held = self.blobs.setdefault(sha256, bytearray())
        offset = int(parse_qs(address.query)["offset"][0])
        assert offset == len(held), "the console sent bytes that do not follow what is here"
        held += body
        return sha256

    async def _watch(self) -> AsyncIterator[bytes]:
        queue: asyncio.Queue[tuple[p.Delta, ...]] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            yield b"retry: 1000\n\n" + self._sse("snapshot", self.status)
            while True:
                for delta in await queue.get():
                    yield self._sse("delta", delta)
        finally:
            self._watchers.discard(queue)

    def _publish(self, deltas: tuple[p.Delta, ...]) -> None:
        for queue in self._watchers:
            queue.put_nowait(deltas)

    def _sse(self, event: str, value: Any) -> bytes:
        self._sequence += 1
        return b"id: c0ffee-%d\nevent: %b\ndata: %b\n\n" % (self._sequence, event.encode(), msgspec.json.encode(value))

    async def _logs(self, seen: Request) -> AsyncIterator[bytes]:
        since = seen.query.get("since")
        start = datetime.fromisoformat(since) if since else AT - timedelta(days=1)
        for line in [each for each in self.lines if each.at >= start][-int(seen.query.get("tail", 10**6)) :]:
            yield msgspec.json.encode(line) + b"\n"
        while seen.query.get("follow") == "true":
            await asyncio.sleep(self.heartbeat or 3600)
            yield b"\n"
