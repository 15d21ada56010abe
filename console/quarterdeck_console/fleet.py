"""Many agents at once: ask them all under one deadline each, or subscribe to them all for as long as wanted.

A host that fails is a value beside the others, never an exception and never a stall. This module keeps no state of
the fleet (see `state`) and decides nothing about changes (see `operations`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from quarterdeck_console import state
from quarterdeck_console.client import Client, WatchEvent, bounded
from quarterdeck_console.config import Host
from quarterdeck_console.errors import ConsoleError, Malformed, NotFound

T = TypeVar("T")

QUEUE = 256
"""Events that wait for a slow reader; beyond, the subscriptions wait, and agents cut them to a fresh snapshot."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What one host said: a value, or why there is none."""

    host: Host
    value: T | None = None
    error: ConsoleError | None = None


async def ask(
    hosts: Sequence[Host], question: Callable[[Client], Awaitable[T]], deadline: float
) -> tuple[Answer[T], ...]:
    """Put one question to every host at once; answers in the hosts' order, none later than `deadline` seconds."""
    return tuple(await asyncio.gather(*(_ask_one(host, question, deadline) for host in hosts)))


async def _ask_one(host: Host, question: Callable[[Client], Awaitable[T]], deadline: float) -> Answer[T]:
    async def put() -> T:
        async with Client(host, deadline) as client:
            return await question(client)

    try:
        return Answer(host, value=await bounded(deadline, host.name, put()))
    except ConsoleError as error:
        error.host = error.host or host.name
        return Answer(host, error=error)


def without_absent(answers: tuple[Answer[T], ...]) -> tuple[Answer[T], ...]:
    """Leave out hosts that only do not have what was asked for, when another has it."""
    if any(answer.error is None for answer in answers):
        return tuple(answer for answer in answers if not isinstance(answer.error, NotFound))
    return answers


def back_off(first: float = 0.2, most: float = 15.0) -> Iterator[float]:
    """Ever longer pauses in seconds, each between half and whole of a doubling bound (jitter spreads a herd)."""
    bound = first
    while True:
        yield bound * (0.5 + random.random() / 2)  # noqa: S311 - no secret
        bound = min(bound * 2, most)


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """One event of one host; `error` when its subscription was lost and is being taken up again."""

    host: str
    event: WatchEvent | None = None
    error: ConsoleError | None = None


async def subscribe(
    host: Host, timeout: float = 5.0, first: float = 0.2, most: float = 15.0
) -> AsyncGenerator[FleetEvent, None]:
    """One host's events without end: after a cut it connects again and resumes by the last event's id."""
    last: str | None = None
    pauses = back_off(first, most)
    while True:
        try:
            async with Client(host, timeout) as client, contextlib.aclosing(client.watch(last)) as events:
                async for event in events:
                    last, pauses = event.id or last, back_off(first, most)
                    yield FleetEvent(host.name, event=event)
            yield FleetEvent(host.name, error=ConsoleError(f"{host.name} ended the stream", code="unreachable"))
        except ConsoleError as error:
            if isinstance(error, Malformed):
                last = None
            yield FleetEvent(host.name, error=error)
        await asyncio.sleep(next(pauses))


async def subscribe_all(hosts: Sequence[Host], timeout: float = 5.0) -> AsyncGenerator[FleetEvent, None]:
    """Every host's events as they come, merged."""
    async with contextlib.aclosing(merge([subscribe(host, timeout) for host in hosts])) as events:
        async for event in events:
            yield event


async def merge(sources: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """The items of all sources as they come; ends when all have ended, raises what any raises. Closes its sources."""
    queue: asyncio.Queue[T] = asyncio.Queue(QUEUE)

    async def drain(source: AsyncGenerator[T, None]) -> None:
        async with contextlib.aclosing(source):  # also where this is ended while the queue is full
            async for item in source:
                await queue.put(item)

    tasks = [asyncio.create_task(drain(source)) for source in sources]
    everything = asyncio.gather(*tasks)
    try:
        while not (everything.done() and queue.empty()):
            # Waiting for two things at once costs more than an item: in a flood, take all that is there first.
            while not queue.empty():
                yield queue.get_nowait()
            if everything.done():
                break
            getter = asyncio.ensure_future(queue.get())
            await asyncio.wait((getter, everything), return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                yield getter.result()
            else:
                getter.cancel()
        everything.result()
    finally:
        everything.cancel()
        await asyncio.gather(*tasks, everything, return_exceptions=True)


def fold(fleet: state.FleetState, event: FleetEvent, now: datetime) -> state.FleetState:
    """The fleet after one more event."""
    if event.error is not None:
        return state.lost(fleet, event.host, event.error.detail, now, event.error.code)
    assert event.event is not None
    if event.event.status is not None:
        return state.snapshot(fleet, event.host, event.event.status, now)
    if event.event.delta is not None:
        return state.delta(fleet, event.host, event.event.delta, now)
    return state.heartbeat(fleet, event.host, now)
