"""What a person does to a fleet, as asynchronous iterators of progress: push, change, wait.

Every change carries an operation id made here, so that asking again after a cut is safe. Waiting subscribes to the
agent's events and survives cuts; giving up a wait never stops what was asked for. Nothing here prints.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from quarterdeck_agent.protocol import (
    AnyRequest,
    BlobWanted,
    ChangeKind,
    LogLine,
    Operation,
    OperationState,
    PushPlan,
    Version,
)
from quarterdeck_console import bundle
from quarterdeck_console.client import Client, wait_error
from quarterdeck_console.config import Host
from quarterdeck_console.errors import ChangeFailed, Conflict, ConsoleError, Malformed, NotFound, Unreachable
from quarterdeck_console.fleet import FleetEvent, back_off, merge, subscribe

ENDED = (OperationState.SUCCEEDED, OperationState.FAILED, OperationState.SUPERSEDED)
UPLOADS = 4
ATTEMPTS = 6
"""Cuts in a row, without a byte of progress between them, before a push gives up."""


# --- push ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PushProgress:
    """How far a push is: `done` of `total` bytes in this stage; `version` when it is complete."""

    stage: Literal["hashing", "sending", "retrying", "registered"]
    done: int
    total: int
    label: str
    host: str | None = None
    version: Version | None = None
    already: bool = False
    sent: int = 0
    detail: str = ""


async def read_bundle(folder: Path, allow_pickle: bool) -> AsyncGenerator[PushProgress | bundle.Bundle, None]:
    """Hash a bundle in threads; progress a few times a second, then the bundle itself. Closed early, hashing ends."""
    done, wanted = 0, True

    def told(count: int) -> None:
        nonlocal done
        done += count
        if not wanted:
            raise _Unwanted

    await asyncio.to_thread(bundle.read_config, folder)
    total = sum(source.size for source in await asyncio.to_thread(bundle.list_files, folder))
    work = asyncio.ensure_future(asyncio.to_thread(bundle.read, folder, allow_pickle, told))
    try:
        while not work.done():
            await asyncio.wait((work,), timeout=0.2)
            yield PushProgress("hashing", min(done, total), total, folder.name)
    finally:
        wanted = False  # a process does not end before its threads do
        work.cancel()
    yield work.result()


class _Unwanted(Exception):
    """Nobody waits for these hashes any more."""


async def push(host: Host, package: bundle.Bundle, timeout: float = 30.0) -> AsyncGenerator[PushProgress, None]:
    """Send what the host misses and register the version. After a cut it asks what is there and goes on from it."""
    operation_id, pauses, failures, best, answered = new_id(), back_off(), 0, -1, False
    total, label = package.size, package.label
    while True:
        progress = _Sent()
        try:
            async with Client(host, timeout) as client:
                plan = await client.plan_push(package.request)
                answered = True
                missing = sum(blob.size - blob.offset for blob in plan.missing)
                progress.start = total - missing
                async for _ in _send_all(client, package, plan, progress):
                    yield PushProgress("sending", progress.start + progress.bytes, total, plan.label, host.name)
                version = plan.version or await client.add_version(package.request, operation_id)
                already = plan.version is not None
                yield PushProgress("registered", total, total, plan.label, host.name, version, already, progress.bytes)
                return
        except (Unreachable, _BlobBusy) as told:
            error = told.reason if isinstance(told, _BlobBusy) else told
            reached = progress.start + progress.bytes
            failures, best = (0, reached) if reached > best else (failures + 1, best)
            if failures >= ATTEMPTS or not answered:
                raise error from told
            yield PushProgress("retrying", max(reached, 0), total, label, host.name, detail=error.detail)
            await asyncio.sleep(next(pauses))


class _BlobBusy(Exception):
    """Somebody else sends this blob, or has sent some of it: ask anew what is missing."""

    def __init__(self, reason: Conflict) -> None:
        super().__init__(reason.detail)
        self.reason = reason


@dataclass(slots=True)
class _Sent:
    """Bytes that went out in one attempt, and where it started."""

    start: int = -1
    bytes: int = 0


async def _send_all(
    client: Client, package: bundle.Bundle, plan: PushPlan, progress: _Sent
) -> AsyncGenerator[None, None]:
    """Send every missing blob, a few at once; yields a few times a second."""
    gate = asyncio.Semaphore(UPLOADS)

    async def one(wanted: BlobWanted) -> None:
        source = package.sources.get(wanted.sha256)
        if source is None:
            raise Malformed(f"{client.host.name} asks for a blob that the bundle does not have", host=client.host.name)
        async with gate:
            try:
                await client.send_blob(wanted, _content(source, wanted.offset, progress))
            except Conflict as conflict:
                raise _BlobBusy(conflict) from conflict

    tasks = {asyncio.create_task(one(blob)) for blob in plan.missing}
    try:
        while tasks:
            done, tasks = await asyncio.wait(tasks, timeout=0.2, return_when=asyncio.FIRST_EXCEPTION)
            failed = [task for task in done if task.exception() is not None]
            if failed:
                failed[0].result()
            yield None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _content(source: bundle.Source, offset: int, progress: _Sent) -> AsyncGenerator[bytes, None]:
    """The bytes of a file from `offset`. Reads are of the page cache or a disk that hashing has just read."""
    bundle.check_unchanged(source)
    with source.path.open("rb", buffering=0) as file:
        file.seek(offset)
        while chunk := file.read(bundle.CHUNK):
            yield chunk
            progress.bytes += len(chunk)


# --- changes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChangeProgress:
    """A change on one host: its operation as it stands, or what happened to the wait."""

    host: str
    operation: Operation
    note: str = ""


def new_id() -> str:
    """A fresh operation id."""
    return uuid.uuid4().hex


async def change(
    host: Host,
    kind: ChangeKind,
    name: str,
    request: AnyRequest,
    *,
    generation: int | None = None,
    timeout: float = 10.0,
) -> Operation:
    """Ask for a change, and ask again after a cut: the operation id makes it one change. Raises when it is refused."""
    operation_id, pauses = new_id(), back_off(most=2.0)
    async with asyncio.timeout(None) as deadline:
        deadline.reschedule(asyncio.get_running_loop().time() + 3 * timeout)
        for attempt in range(4):
            try:
                async with Client(host, timeout) as client:
                    return await client.change(kind, name, request, operation_id=operation_id, generation=generation)
            except Unreachable:
                if attempt == 3:
                    raise
                await asyncio.sleep(next(pauses))
    raise Unreachable(f"{host.name} did not take the {kind} of {name}", host=host.name)


async def wait(
    host: Host, operation: Operation, timeout: float, subscription: AsyncGenerator[FleetEvent, None] | None = None
) -> AsyncGenerator[ChangeProgress, None]:
    """Follow an operation to its end. Raises `TimedOut` when that takes more than `timeout` seconds."""
    yield ChangeProgress(host.name, operation)
    if operation.state in ENDED:
        return
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    async with contextlib.aclosing(_states(host, operation, subscription)) as states:
        while True:
            try:
                async with asyncio.timeout_at(end):
                    progress = await anext(states)
            except TimeoutError as error:
                raise wait_error(host.name, timeout, operation) from error
            operation = progress.operation
            yield progress
            if operation.state in ENDED:
                return


async def _states(
    host: Host, operation: Operation, subscription: AsyncGenerator[FleetEvent, None] | None
) -> AsyncGenerator[ChangeProgress, None]:
    """An operation each time it changes, as the host's events tell; asked for anew after each (re)connection."""
    cut = False
    async with contextlib.aclosing(subscription or subscribe(host, most=2.0)) as events:
        async for event in events:
            if event.error is not None:
                if not cut:
                    yield ChangeProgress(
                        host.name, operation, note=f"{event.error.detail}; waiting for it to come back"
                    )
                cut = True
                continue
            found = await _found(host, event, operation, cut)
            cut = False
            if found is not None and found != operation:
                operation = found
                yield ChangeProgress(host.name, operation)


async def _found(host: Host, event: FleetEvent, operation: Operation, cut: bool) -> Operation | None:
    assert event.event is not None
    if event.event.delta is not None:
        delta = event.event.delta
        if delta.kind == "operation" and delta.key == operation.id and isinstance(delta.value, Operation):
            return delta.value
    if event.event.status is not None:
        for each in event.event.status.operations:
            if each.id == operation.id:
                return each
    if event.event.status is None and not cut:
        return None
    try:
        async with Client(host) as client:
            return await client.operation(operation.id)
    except (Unreachable, NotFound):
        return None


def failure(host: Host, operation: Operation) -> ConsoleError | None:
    """Why an ended operation did not do what was asked; `None` when it did."""
    if operation.state == OperationState.SUCCEEDED:
        return None
    detail = f"{operation.kind} of {operation.target} on {host.name} {operation.state.value}"
    if operation.detail:
        detail += f": {operation.detail}"
    if operation.state == OperationState.SUPERSEDED:
        return Conflict(
            detail, code="superseded", host=host.name, operation=operation.id, hint="a newer change came first"
        )
    return ChangeFailed(
        detail,
        code=operation.code or ChangeFailed.code,
        host=host.name,
        operation=operation.id,
        hint=f"see qd describe {operation.target} and qd logs {operation.target}"
        + (f" --revision {operation.revision}" if operation.revision else ""),
    )


# --- logs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LogQuery:
    """Which lines: the agent's own parameters, see `GET /v1/deployments/{name}/logs`.

    `patient` is ours: following, no error is an end; also a host that is not there yet is waited for.
    """

    since: str | None = None
    tail: int | None = None
    grep: str | None = None
    revision: int | None = None
    replica: str | None = None
    previous: bool = False
    follow: bool = False
    patient: bool = False


@dataclass(frozen=True, slots=True)
class LogItem:
    """A line of one host, or what happened to that host's stream."""

    host: str
    line: LogLine | None = None
    error: ConsoleError | None = None
    note: str = ""


async def logs(hosts: Sequence[Host], name: str, query: LogQuery) -> AsyncGenerator[LogItem, None]:
    """The lines of many hosts. Following, as they come; else merged by time. A host's error is an item beside them."""
    sources = [_host_logs(host, name, query) for host in hosts]
    merged = merge(sources) if query.follow else _by_time(sources)
    async with contextlib.aclosing(merged) as items:
        async for item in items:
            yield item


async def _host_logs(host: Host, name: str, query: LogQuery) -> AsyncGenerator[LogItem, None]:
    """One host's lines; following, it connects again after a cut and leaves out what it has shown already."""
    pauses, seen, cuts, connected = back_off(), _Seen(), 0, False
    while True:
        try:
            parameters = _parameters(query, seen)
            async with Client(host) as client, contextlib.aclosing(client.logs(name, parameters)) as lines:
                async for line in lines:
                    if seen.is_new(line):
                        connected, cuts, pauses = True, 0, back_off()
                        yield LogItem(host.name, line=line)
            if not query.follow:
                return
            cut, connected = f"{host.name} ended the stream", True
        except ConsoleError as error:
            waits = query.patient or (connected and isinstance(error, Unreachable))
            if not (query.follow and waits):
                yield LogItem(host.name, error=error)
                return
            cut = error.detail
        cuts += 1
        if cuts == 1:
            yield LogItem(host.name, note=f"{cut}; following goes on when it is back")
        await asyncio.sleep(next(pauses))


class _Seen:
    """What was shown of each replica last, so that a stream taken up again repeats nothing and misses nothing."""

    OVERLAP = timedelta(seconds=2)
    """Replicas' lines may come a little out of order: ask again for this much, and leave out what is known."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[datetime, Counter[tuple[str, str]]]] = {}
        self._resumed: dict[str, tuple[datetime, Counter[tuple[str, str]]]] = {}

    def resume(self) -> datetime | None:
        """From when to ask again; `None` when nothing was shown yet."""
        self._resumed = {replica: (at, Counter(keys)) for replica, (at, keys) in self._last.items()}
        return max(at for at, _ in self._last.values()) - self.OVERLAP if self._last else None

    def is_new(self, line: LogLine) -> bool:
        """Whether this line was not shown yet; it counts as shown from now on."""
        key = (line.stream, line.text)
        if line.replica in self._resumed:
            at, keys = self._resumed[line.replica]
            if line.at < at:
                return False
            if line.at == at and keys[key] > 0:
                keys[key] -= 1
                return False
        at, keys = self._last.get(line.replica, (line.at, Counter()))
        if line.at != at:
            keys = Counter()
        keys[key] += 1
        self._last[line.replica] = (line.at, keys)
        return True


def _parameters(query: LogQuery, seen: _Seen) -> dict[str, object]:
    resumed = seen.resume()
    if resumed is not None:
        query = replace(query, since=resumed.isoformat().replace("+00:00", "Z"), tail=None)
    return {
        "since": query.since, "tail": query.tail, "grep": query.grep, "revision": query.revision,
        "replica": query.replica, "previous": query.previous or None, "follow": query.follow or None,
    }  # fmt: skip


async def _by_time(sources: Sequence[AsyncGenerator[LogItem, None]]) -> AsyncGenerator[LogItem, None]:
    """Merge finite streams, each in order of time, holding one item of each. Items without a line come at once."""
    heads: dict[int, LogItem] = {}
    waiting = {index: asyncio.ensure_future(_next(source)) for index, source in enumerate(sources)}
    try:
        while waiting or heads:
            if waiting:
                await asyncio.wait(waiting.values())
            for index, task in list(waiting.items()):
                item = task.result()
                del waiting[index]
                if item is not None:
                    heads[index] = item
            if heads:
                index = min(heads, key=lambda each: _time(heads[each]))
                yield heads.pop(index)
                waiting[index] = asyncio.ensure_future(_next(sources[index]))
    finally:
        for task in waiting.values():
            task.cancel()
        await asyncio.gather(*waiting.values(), return_exceptions=True)


async def _next(source: AsyncIterator[LogItem]) -> LogItem | None:
    return await anext(source, None)


def _time(item: LogItem) -> float:
    return item.line.at.timestamp() if item.line else 0.0
