"""The board: what it tells, and how subscribers follow, fall behind and come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from quarterdeck_agent.board import Board, Event
from quarterdeck_agent.protocol import Delta, Gpu, HostStatus, PartState
from tests.agent.api.builders import host_info, part


async def take(events: AsyncIterator[Event], count: int, within: float = 5) -> list[Event]:
    async with asyncio.timeout(within):
        return [await anext(events) for _ in range(count)]


def test_status_holds_what_was_published_in_a_steady_order() -> None:
    board = Board(host_info())
    for index in (2, 0, 1):
        board.publish("gpu", f"GPU-{index}", Gpu(index, f"GPU-{index}", "H100"))
    assert [gpu.index for gpu in board.status().gpus] == [0, 1, 2]
    assert board.status() is board.status()


def test_publishing_an_equal_value_tells_nobody() -> None:
    async def story() -> None:
        board = Board(host_info())
        board.publish("part", "engine", part())
        events = board.subscribe(heartbeat=0.05)
        first = (await take(events, 1))[0]
        board.publish("part", "engine", part())
        board.publish("part", "not there", None)
        assert (await take(events, 1))[0] == Event(first.id, "heartbeat", None)

    asyncio.run(story())


def test_a_subscriber_gets_a_snapshot_and_then_deltas_in_order() -> None:
    async def story() -> None:
        board = Board(host_info())
        events = board.subscribe()
        [snapshot] = await take(events, 1)
        assert snapshot.event == "snapshot"
        assert isinstance(snapshot.payload, HostStatus)
        board.publish("part", "engine", part())
        board.publish("part", "engine", None)
        deltas = await take(events, 2)
        assert [event.payload for event in deltas] == [
            Delta("part", "engine", part()),
            Delta("part", "engine", None),
        ]

    asyncio.run(story())


def test_publishing_all_ends_the_keys_that_are_gone() -> None:
    board = Board(host_info())
    board.publish_all("part", {"a": part("a"), "b": part("b")})
    board.publish_all("part", {"b": part("b", PartState.FAILED)})
    assert board.status().parts == (part("b", PartState.FAILED),)


def test_a_subscriber_resumes_after_the_id_it_saw_last() -> None:
    async def story() -> None:
        board = Board(host_info())
        [snapshot] = await take(board.subscribe(), 1)
        board.publish("part", "a", part("a"))
        board.publish("part", "b", part("b"))
        first, second = await take(board.subscribe(snapshot.id), 2)
        assert [first.event, second.event] == ["delta", "delta"]
        assert await take(board.subscribe(first.id), 1) == [second]

    asyncio.run(story())


def test_an_id_of_another_run_or_of_the_future_or_nonsense_gets_a_snapshot() -> None:
    async def story() -> None:
        board = Board(host_info())
        [here] = await take(board.subscribe(), 1)
        run = here.id.rpartition("-")[0]
        for stale in ("", "0", "other-0", f"{run}-7", f"{run}--1", f"{run}-²", f"{run}-{'9' * 5000}", "\0"):
            [event] = await take(board.subscribe(stale), 1)
            assert event.event == "snapshot", stale

    asyncio.run(story())


def test_a_subscriber_that_falls_behind_the_ring_gets_one_fresh_snapshot() -> None:
    async def story() -> None:
        board = Board(host_info(), ring=10)
        events = board.subscribe()
        await take(events, 1)
        for number in range(25):
            board.publish("info", "", replace(host_info(), cpus=number + 100))
        [snapshot] = await take(events, 1)
        assert isinstance(snapshot.payload, HostStatus)
        assert snapshot.payload.info.cpus == 124
        board.publish("part", "a", part("a"))
        assert (await take(events, 1))[0].payload == Delta("part", "a", part("a"))

    asyncio.run(story())


def test_all_subscribers_get_the_same_event_object() -> None:
    async def story() -> None:
        board = Board(host_info())
        one, two = board.subscribe(), board.subscribe()
        assert (await take(one, 1))[0] is (await take(two, 1))[0]
        board.publish("part", "a", part("a"))
        assert (await take(one, 1))[0] is (await take(two, 1))[0]

    asyncio.run(story())
