"""The real hosts behind the session: `fleet`, `operations` and `client` in the UI's own values.

This and the session are the only modules of the UI that know these three; both are imported after the first frame.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime
from pathlib import Path

from quarterdeck_agent.protocol import DeploymentDetail, Operation, Preview, Series
from quarterdeck_console import bundle, config, fleet, operations
from quarterdeck_console.client import Client, bounded
from quarterdeck_console.config import Host
from quarterdeck_console.errors import ConsoleError
from quarterdeck_console.fleet import FleetEvent
from quarterdeck_console.tui.messages import LogEntry, LogWish, PushCame, Target, Wish

DEADLINE = 10.0
"""Seconds that a host may take to answer a question."""

PATIENCE = 3600.0
"""Seconds that a change is followed; it goes on after that, and the fleet's events tell how it ends."""


class Agents:
    """The hosts of a fleet file."""

    def __init__(self, known: config.Fleet) -> None:
        self._hosts = {host.name: host for host in known.hosts}

    async def events(self) -> AsyncGenerator[FleetEvent, None]:
        async with contextlib.aclosing(fleet.subscribe_all(tuple(self._hosts.values()))) as events:
            async for event in events:
                yield event

    async def detail(self, target: Target) -> DeploymentDetail:
        async with Client(self._host(target.host), DEADLINE) as client:
            found = await bounded(DEADLINE, target.host, client.deployment(target.name))
            assert isinstance(found, DeploymentDetail)
            return found

    async def series(self, host: str, name: str, key: str, since: datetime | None, points: int | None) -> Series:
        async with Client(self._host(host), DEADLINE) as client:
            found = await bounded(DEADLINE, host, client.series(name, key, since, points))
            assert isinstance(found, Series)
            return found

    async def preview(self, wish: Wish, target: Target) -> Preview:
        async with Client(self._host(target.host), DEADLINE) as client:
            asked = client.preview(wish.kind, target.name, wish.request)
            found = await bounded(DEADLINE, target.host, asked)
            assert isinstance(found, Preview)
            return found

    async def change(self, wish: Wish, target: Target) -> AsyncGenerator[Operation, None]:
        host, generation = self._host(target.host), _generation(wish, target)
        operation = await operations.change(host, wish.kind, target.name, wish.request, generation=generation)
        async with contextlib.aclosing(operations.wait(host, operation, PATIENCE)) as states:
            async for progress in states:
                operation = progress.operation
                yield operation
        if (failed := operations.failure(host, operation)) is not None:
            raise failed

    async def logs(self, wish: LogWish) -> AsyncGenerator[LogEntry, None]:
        names = dict.fromkeys(target.name for target in wish.targets)
        sources = [self._logs_of(wish, name) for name in names]
        async with contextlib.aclosing(fleet.merge(sources)) as entries:
            async for entry in entries:
                yield entry

    async def _logs_of(self, wish: LogWish, name: str) -> AsyncGenerator[LogEntry, None]:
        hosts = [self._host(target.host) for target in wish.targets if target.name == name]
        query = operations.LogQuery(
            since=wish.since, tail=wish.tail, revision=wish.revision, replica=wish.replica, previous=wish.previous,
            follow=wish.follow, patient=True,
        )  # fmt: skip
        async with contextlib.aclosing(operations.logs(hosts, name, query)) as items:
            async for item in items:
                yield LogEntry(Target(item.host, name), item.line, item.note, item.error, cut=bool(item.note))

    async def push(self, hosts: tuple[str, ...], folder: str, allow_pickle: bool) -> AsyncGenerator[PushCame, None]:
        package: bundle.Bundle | None = None
        async for step in operations.read_bundle(_folder(folder), allow_pickle):
            if isinstance(step, bundle.Bundle):
                package = step
            else:
                yield PushCame(None, step.stage, step.done, step.total, step.label)
        assert package is not None
        sources = [self._push_one(self._host(name), package) for name in hosts]
        async with contextlib.aclosing(fleet.merge(sources)) as steps:
            async for came in steps:
                yield came

    async def _push_one(self, host: Host, package: bundle.Bundle) -> AsyncGenerator[PushCame, None]:
        try:
            async with contextlib.aclosing(operations.push(host, package)) as steps:
                async for step in steps:
                    yield PushCame(host.name, step.stage, step.done, step.total, step.label, step.detail, step.version)
        except ConsoleError as error:
            yield PushCame(host.name, "failed", label=package.label, error=error)

    async def remove_version(self, host: str, id: str) -> None:
        async with Client(self._host(host), DEADLINE) as client:
            await bounded(DEADLINE, host, client.remove_version(id))

    def _host(self, name: str) -> Host:
        return self._hosts[name]


def _generation(wish: Wish, target: Target) -> int | None:
    if not wish.generations:
        return None
    return wish.generations[wish.targets.index(target)]


def _folder(typed: str) -> Path:
    return Path(typed).expanduser()
