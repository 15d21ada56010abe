"""One agent, typed: every path of `/v1` as a method that returns the protocol's classes or raises a `ConsoleError`.

This is the boundary where remote text is cleaned: no string of an answer leaves here as it was sent. It never
retries and never prints; waiting, resuming and fanning out are `fleet` and `operations`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self, TypeVar

import msgspec

from quarterdeck_agent.protocol import (
    API_PREFIX,
    GENERATION_HEADER,
    HEARTBEAT_HEADER,
    OPERATION_HEADER,
    AnyRequest,
    BlobWanted,
    ChangeKind,
    ChangeRequest,
    Check,
    Delta,
    DeploymentDetail,
    DeploymentStatus,
    Gpu,
    GpuFacts,
    GpuUse,
    Hello,
    HostGauges,
    HostInfo,
    HostStatus,
    LogLine,
    Operation,
    Part,
    Preview,
    Problem,
    PushPlan,
    PushRequest,
    ReplicaGauges,
    Revision,
    Runtime,
    Series,
    Traffic,
    Version,
)
from quarterdeck_console import transport
from quarterdeck_console.clean import clean, clean_all, is_plain
from quarterdeck_console.config import Host
from quarterdeck_console.errors import ConsoleError, Malformed, NotAllowed, TimedOut, Unreachable, of_status

T = TypeVar("T")

ANSWER_LIMIT = 64 * 1024 * 1024
LINE_LIMIT = 16 * 1024 * 1024
QUIET_LIMIT = 15.0
"""Seconds a watch may be silent before it counts as lost: an agent has new gauges each second, or else a heartbeat."""
HEAD_LIMIT = 30.0
"""Seconds until an agent has begun to answer, whatever it streams after that."""
HEARTBEATS = 4
"""So many heartbeats that do not come make a cut."""

_DELTA_TYPES: dict[str, type] = {
    "info": HostInfo, "gauges": HostGauges, "part": Part, "gpu": Gpu, "gpu_facts": GpuFacts,
    "gpu_use": GpuUse, "deployment": DeploymentStatus, "traffic": Traffic, "replica_gauges": ReplicaGauges,
    "operation": Operation, "version": Version, "revision": Revision,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of `/v1/watch`: a snapshot, a delta whose value is of its kind's class, or a heartbeat."""

    id: str | None
    status: HostStatus | None = None
    delta: Delta | None = None


def decode(raw: bytes, kind: type[T], host: str) -> T:
    """`raw` JSON as an instance of `kind`, every string in it clean. Raises `Malformed`."""
    try:
        if is_plain(raw):
            return msgspec.json.decode(raw, type=kind)
        return msgspec.convert(clean_all(msgspec.json.decode(raw)), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(
            f"{host} answered something that is not a {kind}: {clean(str(error))}",
            host=host,
            hint="agent and console may be of different releases: compare qd version and qd hosts",
        ) from error


class Client:
    """A connection to one agent; use it as an asynchronous context."""

    def __init__(self, host: Host, timeout: float = 5.0) -> None:
        self.host = host
        self._timeout = timeout
        self._http: transport.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        self._http = transport.unix_client(
            self.host.socket, _token(self.host), transport.Timeout(self._timeout, read=max(self._timeout, 30.0))
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.aclose()

    # --- reads ---

    async def hello(self) -> Hello:
        return await self._get("/hello", Hello)

    async def status(self) -> HostStatus:
        return await self._get("/status", HostStatus)

    async def deployments(self) -> tuple[DeploymentStatus, ...]:
        return await self._get("/deployments", tuple[DeploymentStatus, ...])

    async def deployment(self, name: str) -> DeploymentDetail:
        return await self._get(f"/deployments/{_part(name)}", DeploymentDetail)

    async def revisions(self, name: str) -> tuple[Revision, ...]:
        return await self._get(f"/deployments/{_part(name)}/revisions", tuple[Revision, ...])

    async def versions(self) -> tuple[Version, ...]:
        return await self._get("/versions", tuple[Version, ...])

    async def version(self, reference: str) -> Version:
        return await self._get(f"/versions/{_part(reference)}", Version)

    async def operations(self, limit: int | None = None, target: str | None = None) -> tuple[Operation, ...]:
        return await self._get("/operations", tuple[Operation, ...], {"limit": limit, "target": target})

    async def operation(self, id: str) -> Operation:
        return await self._get(f"/operations/{_part(id)}", Operation)

    async def runtimes(self) -> tuple[Runtime, ...]:
        return await self._get("/runtimes", tuple[Runtime, ...])

    async def doctor(self) -> tuple[Check, ...]:
        return await self._get("/doctor", tuple[Check, ...])

    async def gpu_doctor(self) -> tuple[Check, ...]:
        """What torch finds on each GPU: slow, so the answer may take as long as whoever asks allows."""
        timeout = transport.Timeout(self._timeout, read=None)
        return decode(await self._call("GET", "/doctor/gpus", timeout=timeout), tuple[Check, ...], self.host.name)

    async def series(self, name: str, key: str, since: datetime | None = None, points: int | None = None) -> Series:
        """One gauge since a time; `points` is about how many are wanted, where not all that are kept."""
        query = {"name": name, "key": key, "since": _instant(since), "points": points}
        return await self._get("/series", Series, query)

    # --- changes ---

    async def preview(
        self, kind: ChangeKind, name: str, request: AnyRequest, *, generation: int | None = None
    ) -> Preview:
        """What the change would do; asks, changes nothing."""
        method, path = _change(kind, name)
        headers = {} if generation is None else {GENERATION_HEADER: str(generation)}
        return decode(await self._send(method, f"{path}?plan=true", request, headers), Preview, self.host.name)

    async def change(
        self, kind: ChangeKind, name: str, request: AnyRequest, *, operation_id: str, generation: int | None = None
    ) -> Operation:
        """Ask for a change. Asking again with the same `operation_id` returns the first result."""
        headers = {OPERATION_HEADER: operation_id}
        if generation is not None:
            headers[GENERATION_HEADER] = str(generation)
        method, path = _change(kind, name)
        return decode(await self._send(method, path, request, headers), Operation, self.host.name)

    async def trust_gpu(self, uuid: str, request: ChangeRequest, *, operation_id: str) -> Operation:
        """Say that a GPU is well again. Asking again with the same `operation_id` returns the first result."""
        raw = await self._send("POST", f"/gpus/{_part(uuid)}/trust", request, {OPERATION_HEADER: operation_id})
        return decode(raw, Operation, self.host.name)

    # --- pushing ---

    async def plan_push(self, request: PushRequest) -> PushPlan:
        return decode(await self._send("POST", "/pushes", request), PushPlan, self.host.name)

    async def blob(self, sha256: str, size: int) -> BlobWanted:
        return await self._get(f"/blobs/{_part(sha256)}", BlobWanted, {"size": size})

    async def send_blob(self, wanted: BlobWanted, content: AsyncIterator[bytes]) -> None:
        """Send the bytes of a blob from `wanted.offset` to its end."""
        await self._call(
            "PUT",
            f"/blobs/{_part(wanted.sha256)}",
            params={"offset": wanted.offset, "size": wanted.size},
            content=content,
            headers={
                "Content-Type": "application/octet-stream",
                "Content-Length": str(wanted.size - wanted.offset),
            },
        )

    async def add_version(self, request: PushRequest, operation_id: str) -> Version:
        raw = await self._send("POST", "/versions", request, {OPERATION_HEADER: operation_id})
        return decode(raw, Version, self.host.name)

    async def remove_version(self, reference: str) -> None:
        await self._call("DELETE", f"/versions/{_part(reference)}")

    # --- streams ---

    async def logs(self, name: str, query: Mapping[str, Any]) -> AsyncGenerator[LogLine, None]:
        """The lines of a deployment's logs as the agent sends them; with `follow` until it is closed.

        An agent that says how often it sends at least an empty line, and then sends none, is `Unreachable`.
        """
        follow = bool(query.get("follow"))
        async with contextlib.aclosing(
            self._lines(f"/deployments/{_part(name)}/logs", query, read=None if follow else HEAD_LIMIT)
        ) as lines:
            async for line in lines:
                if line.strip():
                    yield decode(line, LogLine, self.host.name)

    async def watch(self, last_event_id: str | None = None) -> AsyncGenerator[WatchEvent, None]:
        """The agent's events: one snapshot, or what was missed since `last_event_id`, then deltas, until it is cut."""
        headers = {"Accept": "text/event-stream"}
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        event, id_, data = "message", last_event_id, b""
        async with contextlib.aclosing(self._lines("/watch", {}, None, headers, QUIET_LIMIT)) as lines:
            async for line in lines:
                if not line and (data or event != "message"):
                    yield _event(event, id_, data, self.host.name)
                    event, data = "message", b""
                name, _, value = line.partition(b":")
                value = value.removeprefix(b" ")
                if name == b"event":
                    event = value.decode("ascii", "replace")
                elif name == b"id":
                    id_ = value.decode("ascii", "replace")
                elif name == b"data":
                    data = data + b"\n" + value if data else value

    # --- underneath ---

    async def _get(self, path: str, kind: type[T], query: Mapping[str, Any] | None = None) -> T:
        return decode(await self._call("GET", path, params=_query(query or {})), kind, self.host.name)

    async def _send(self, method: str, path: str, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
        content = msgspec.json.encode(body)
        return await self._call(
            method, path, content=content, headers={"Content-Type": "application/json", **(headers or {})}
        )

    async def _call(self, method: str, path: str, **options: Any) -> bytes:
        assert self._http is not None, "use the client as a context"
        with self._told():
            async with self._http.stream(method, API_PREFIX + path, **options) as response:
                raw = await _limited(response, self.host.name)
        if response.status_code >= 400:
            raise problem(response.status_code, raw, self.host.name)
        return raw

    async def _lines(
        self,
        path: str,
        query: Mapping[str, Any],
        read: float | None,
        headers: Mapping[str, str] | None = None,
        quiet: float | None = None,
    ) -> AsyncGenerator[bytes, None]:
        assert self._http is not None, "use the client as a context"
        timeout = transport.Timeout(self._timeout, read=read)
        with self._told():
            stream = self._http.stream("GET", API_PREFIX + path, params=_query(query), timeout=timeout, headers=headers)
            async with contextlib.AsyncExitStack() as opened:
                response = await bounded(HEAD_LIMIT, self.host.name, opened.enter_async_context(stream))
                if response.status_code >= 400:
                    raise problem(response.status_code, await _limited(response, self.host.name), self.host.name)
                async for line in _split(response, self.host.name, quiet or _quiet(response)):
                    yield line

    @contextlib.contextmanager
    def _told(self) -> Any:
        """What goes wrong on the way to the agent, told as a `ConsoleError`."""
        name = self.host.name
        try:
            yield
        except transport.ConnectTimeout as error:
            raise Unreachable(f"{name} does not answer on {self.host.url}", host=name) from error
        except transport.ConnectError as error:
            raise Unreachable(
                f"{name} cannot be reached: {error}", host=name, hint="is qd-agent running there? see qd doctor"
            ) from error
        except transport.TimeoutException as error:
            raise Unreachable(f"{name} took the request and did not answer in time", host=name) from error
        except transport.HTTPError as error:
            raise Unreachable(f"the connection to {name} was lost: {clean(str(error))}", host=name) from error


async def bounded(seconds: float, host: str, work: Any) -> Any:
    """Await `work`, no longer than `seconds`; late means `Unreachable`."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError as error:
        raise Unreachable(f"{host} did not answer within {seconds:g} s", host=host) from error


def problem(status: int, raw: bytes, host: str) -> ConsoleError:
    """The error that an agent's problem document tells; its own `code` is kept."""
    try:
        told = decode(raw, Problem, host)
    except Malformed:
        return of_status(status)(f"{host} answered with HTTP {status} and no explanation", host=host)
    kind = of_status(status)
    if told.code in ("start_refused",):
        kind = of_status(500)
    return kind(told.detail, code=told.code, host=host, field=told.field, hint=told.hint, operation=told.operation)


def _token(host: Host) -> str:
    """The token that lies beside the socket. Raises `NotAllowed` when it may not be read."""
    try:
        token = host.token_path.read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not host.socket.exists():
            raise Unreachable(
                f"{host.name} cannot be reached: there is no socket at {host.socket}",
                host=host.name,
                hint="start it with qd-agent run, or name another with qd hosts add",
            ) from error
        raise NotAllowed(
            f"there is no token at {host.token_path}", host=host.name, hint="give its place as token_file"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise NotAllowed(
            f"cannot read the token of {host.name}: {error}", host=host.name, hint="run as the agent's user, or as root"
        ) from error
    if not token or not token.isprintable():
        raise NotAllowed(f"the token at {host.token_path} is empty or damaged", host=host.name)
    return token


def _event(event: str, id_: str | None, data: bytes, host: str) -> WatchEvent:
    if event == "snapshot":
        return WatchEvent(id_, status=decode(data, HostStatus, host))
    if event == "delta":
        loose = decode(data, dict[str, Any], host)
        kind, value = _DELTA_TYPES.get(str(loose.get("kind"))), loose.get("value")
        if kind is not None:
            try:
                typed = None if value is None else msgspec.convert(value, type=kind)
            except msgspec.ValidationError as error:
                raise Malformed(f"{host} sent a delta that cannot be understood: {error}", host=host) from error
            return WatchEvent(id_, delta=Delta(loose["kind"], str(loose.get("key", "")), typed))
    return WatchEvent(id_)


async def _limited(response: transport.Response, host: str) -> bytes:
    parts, size = [], 0
    async for chunk in response.aiter_bytes():
        parts.append(chunk)
        size += len(chunk)
        if size > ANSWER_LIMIT:
            raise Malformed(f"{host} sent an answer of more than {ANSWER_LIMIT} bytes", host=host)
    return b"".join(parts)


def _quiet(response: transport.Response) -> float | None:
    """Seconds of silence that this agent never keeps on a stream; `None` where it does not say."""
    try:
        heartbeat = float(response.headers.get(HEARTBEAT_HEADER, ""))
    except ValueError:
        return None
    return HEARTBEATS * heartbeat if 0 < heartbeat < 3600 else None


async def _split(response: transport.Response, host: str, quiet: float | None) -> AsyncGenerator[bytes, None]:
    """Lines by LF or CRLF, without it. Only these end a line: JSON strings may hold U+2028 as it is.

    Raises `Unreachable` after `quiet` seconds without a byte.
    """
    rest, chunks = b"", response.aiter_bytes()
    while (chunk := await _next(chunks, quiet, host)) is not None:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
        if len(rest) > LINE_LIMIT:
            raise Malformed(f"{host} sent a line of more than {LINE_LIMIT} bytes", host=host)
    if rest:
        yield rest


async def _next(chunks: AsyncIterator[bytes], quiet: float | None, host: str) -> bytes | None:
    try:
        async with asyncio.timeout(quiet):
            return await anext(chunks, None)
    except TimeoutError as error:
        raise Unreachable(f"{host} is silent for {quiet:g} s: the connection is dead", host=host) from error


def _change(kind: ChangeKind, name: str) -> tuple[str, str]:
    path = f"/deployments/{_part(name)}"
    if kind == "deploy":
        return "PUT", path
    if kind == "remove":
        return "DELETE", path
    return "POST", f"{path}/{kind}"


def _part(text: str) -> str:
    from urllib.parse import quote

    # A dot segment would be resolved away on the path to the agent; as %2E it names nothing, and gets a clear 404.
    return quote(text, safe=":") if text.strip(".") else text.replace(".", "%252E") or "%00"


def _query(values: Mapping[str, Any]) -> dict[str, str]:
    def text(value: Any) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(_instant(value)) if isinstance(value, datetime) else str(value)

    return {key: text(value) for key, value in values.items() if value is not None}


def _instant(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat().replace("+00:00", "Z")


def wait_error(host: str, seconds: float, operation: Operation) -> TimedOut:
    """The wait for an operation is over; the operation is not."""
    return TimedOut(
        f"{operation.kind} of {operation.target} on {host} was not done after {seconds:g} s; it goes on there",
        host=host,
        operation=operation.id,
        hint=f"see how it stands with: qd operations {operation.id}",
    )
