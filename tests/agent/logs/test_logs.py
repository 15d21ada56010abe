"""Logs as readers meet them: real files from the real writer, rotated, followed, searched and pruned."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from quarterdeck_agent import logs
from quarterdeck_agent.drivers.logfile import LogFile
from quarterdeck_agent.errors import InvalidInput, NotFound
from quarterdeck_agent.logs import LogStore
from quarterdeck_agent.protocol import LogLine

BASE = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LogStore]:
    store = LogStore(tmp_path)
    yield store
    store.close()


class Writer:
    """A replica that writes a line at each given second after BASE."""

    def __init__(self, store: LogStore, revision: int, replica: str, *, size: int = 1 << 20, count: int = 10) -> None:
        self.folder = store.replica_folder("digits", revision, replica)
        self.folder.mkdir(parents=True)
        self._file = LogFile(self.folder, size=size, count=count)

    def __call__(self, second: float, text: str, stream: str = "o") -> None:
        self._file.write(stream, text.encode() + b"\n", (BASE + timedelta(seconds=second)).timestamp())

    def close(self) -> None:
        self._file.close()


def collect(lines: AsyncIterator[LogLine]) -> list[LogLine]:
    async def run() -> list[LogLine]:
        return [line async for line in lines]

    return asyncio.run(run())


def texts(lines: AsyncIterator[LogLine]) -> list[str]:
    return [line.text for line in collect(lines)]


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is on disk
            await asyncio.sleep(0.01)


def following(store: LogStore, act: Callable[[list[LogLine]], Awaitable[None]], **wish: object) -> list[LogLine]:
    """Follow while `act` runs; it sees the lines so far and returns when it has seen enough."""

    async def run() -> list[LogLine]:
        seen: list[LogLine] = []

        async def read() -> None:
            async with aclosing(store.lines("digits", follow=True, **wish)) as lines:  # type: ignore[arg-type]
                async for line in lines:
                    seen.append(line)

        task = asyncio.create_task(read())
        try:
            await act(seen)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return seen

    return asyncio.run(run())


# --- reading ---------------------------------------------------------------------------------------------------


def test_lines_of_all_replicas_and_revisions_come_merged_by_time(store: LogStore) -> None:
    one, two, old = Writer(store, 2, "a"), Writer(store, 2, "b"), Writer(store, 1, "c")
    old(0, "first")
    for second in range(1, 9, 2):
        one(second, f"a{second}")
        two(second + 1, f"b{second + 1}", "e")
    lines = collect(store.lines("digits"))
    assert [line.text for line in lines] == ["first", "a1", "b2", "a3", "b4", "a5", "b6", "a7", "b8"]
    assert lines[2] == LogLine(BASE + timedelta(seconds=2), "digits", 2, "b", "stderr", "b2")


def test_rotated_files_read_as_one(store: LogStore) -> None:
    writer = Writer(store, 1, "a", size=1000)
    for number in range(100):
        writer(number, f"line {number}")
    assert len(list(writer.folder.iterdir())) > 3
    assert texts(store.lines("digits")) == [f"line {number}" for number in range(100)]


def test_what_the_cap_dropped_is_told_by_a_marker(store: LogStore) -> None:
    writer = Writer(store, 1, "a", size=1000, count=3)
    for number in range(200):
        writer(number, f"line {number}")
    lines = collect(store.lines("digits"))
    assert any(line.stream == "agent" and "log cap reached" in line.text for line in lines)
    assert [line.text for line in lines if line.stream == "stdout"][-1] == "line 199"


@pytest.mark.parametrize("size", [900, 1 << 20])
@pytest.mark.parametrize("count", [0, 1, 7, 10_000])
def test_tail_counts_lines_over_all_replicas(store: LogStore, size: int, count: int) -> None:
    one, two = Writer(store, 1, "a", size=size), Writer(store, 1, "b", size=size)
    for number in range(60):
        (one if number % 3 else two)(number, f"line {number}")
    expected = [f"line {number}" for number in range(60)][max(0, 60 - count) :]
    assert texts(store.lines("digits", tail=count)) == expected


@pytest.mark.parametrize("count", [0, 3])
def test_a_replica_that_writes_meanwhile_makes_a_tail_no_longer(
    store: LogStore, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    writer, position = Writer(store, 1, "a"), logs._position
    for number in range(10):
        writer(number, f"line {number}")

    def slow(*given: object) -> None:
        position(*given)  # type: ignore[arg-type]
        for number in range(10, 1000):
            writer(number, f"line {number}")

    monkeypatch.setattr(logs, "_position", slow)
    assert texts(store.lines("digits", tail=count)) == [f"line {number}" for number in range(10 - count, 10)]


def test_tail_counts_only_what_grep_lets_through(store: LogStore) -> None:
    writer = Writer(store, 1, "a", size=900)
    for number in range(60):
        writer(number, f"{'ERROR' if number % 10 == 0 else 'fine'} {number}")
    assert texts(store.lines("digits", tail=2, grep="ERROR")) == ["ERROR 40", "ERROR 50"]


@pytest.mark.parametrize("size", [6_000, 300_000])
@pytest.mark.parametrize("second", [-5, 0, 1500, 2999, 3000.5])
def test_since_finds_the_first_line_of_that_time(store: LogStore, size: int, second: float) -> None:
    writer = Writer(store, 1, "a", size=size, count=1000)
    for number in range(3000):
        writer(number, f"line {number} " + "x" * 60)
    for index, part in enumerate(sorted(writer.folder.glob("[0-9]*.log"), key=lambda path: int(path.stem))):
        last = part.read_bytes().splitlines()[-1][:27].decode()
        at = datetime.fromisoformat(last).timestamp()
        os.utime(part, (at, at))
        assert index < 1000
    lines = collect(store.lines("digits", since=BASE + timedelta(seconds=second)))
    assert [line.text.split()[1] for line in lines] == [str(n) for n in range(3000) if n >= second]


def test_revision_and_replica_narrow_the_lines(store: LogStore) -> None:
    for revision, replica in ((1, "a"), (2, "b"), (2, "c")):
        Writer(store, revision, replica)(0, f"{revision}{replica}")
    assert texts(store.lines("digits", revision=2)) == ["2b", "2c"]
    assert texts(store.lines("digits", replica="a")) == ["1a"]


def test_previous_is_the_revision_before(store: LogStore) -> None:
    for revision in (1, 3, 7):
        Writer(store, revision, "a")(revision, f"revision {revision}")
    assert texts(store.lines("digits", previous=True)) == ["revision 3"]
    assert texts(store.lines("digits", previous=True, revision=3)) == ["revision 1"]


def test_previous_of_the_only_revision_is_its_earlier_replicas(store: LogStore) -> None:
    Writer(store, 1, "newer")(5, "second try")
    Writer(store, 1, "older")(1, "first try")
    assert texts(store.lines("digits", previous=True)) == ["first try"]


@pytest.mark.parametrize("wish", [{"revision": 9}, {"replica": "x"}, {"previous": True}])
def test_asking_for_logs_that_are_not_kept_says_so(store: LogStore, wish: dict[str, object]) -> None:
    with pytest.raises(NotFound):
        collect(store.lines("digits", **wish))  # type: ignore[arg-type]


def test_a_deployment_without_logs_has_no_lines(store: LogStore) -> None:
    assert texts(store.lines("digits")) == []


@pytest.mark.parametrize("name", ["..", "../x", "", "a/b", "a\0b", ".hidden", "x" * 200])
def test_a_hostile_name_reaches_no_file(store: LogStore, name: str) -> None:
    with pytest.raises(NotFound):
        collect(store.lines(name))
    with pytest.raises(NotFound):
        store.replica_folder("digits", 1, name)


def test_links_and_pipes_in_a_log_folder_are_not_read(store: LogStore, tmp_path: Path) -> None:
    secret = tmp_path.parent / "secret"
    secret.write_text("2026-03-01T12:00:00.000000Z o secret\n")
    writer = Writer(store, 1, "a")
    writer(0, "mine")
    (writer.folder / "1.log").symlink_to(secret)
    os.mkfifo(writer.folder / "2.log")
    (tmp_path / "digits" / "2").symlink_to(tmp_path.parent)
    assert texts(store.lines("digits")) == ["mine"]


def test_lines_that_are_not_in_the_format_are_shown_and_harm_nothing(store: LogStore) -> None:
    writer = Writer(store, 1, "a")
    writer(0, "good")
    with (writer.folder / "current.log").open("ab") as file:
        file.write(b"\xff\xfe no stamp\n2026-99-99T99:99:99.999999Z o x\n\n" + b"y" * 300_000 + b"\n")
    writer(1, "better\rhalf")
    found = texts(store.lines("digits"))
    assert found[:2] == ["good", "\\xff\\xfe no stamp"]
    assert found[-1] == "better\rhalf"
    assert texts(store.lines("digits", tail=1)) == ["better\rhalf"]


def test_a_line_still_being_written_waits_for_its_end(store: LogStore) -> None:
    writer = Writer(store, 1, "a")
    writer(0, "whole")
    with (writer.folder / "current.log").open("ab") as file:
        file.write(b"2026-03-01T12:00:01.000000Z o ha")
    assert texts(store.lines("digits")) == ["whole"]
    assert texts(store.lines("digits", tail=5)) == ["whole"]


def test_last_lines_are_the_newest_of_one_replica(store: LogStore) -> None:
    writer = Writer(store, 1, "a", size=900)
    for number in range(50):
        writer(number // 10, f"line {number}")
    assert store.last_lines("digits", 1, "a", 3) == ("line 47", "line 48", "line 49")
    assert store.last_lines("digits", 1, "gone", 3) == ()


# --- grep ------------------------------------------------------------------------------------------------------


def test_grep_is_plain_text_unless_a_regular_expression_is_asked_for(store: LogStore) -> None:
    writer = Writer(store, 1, "a")
    for number, text in enumerate(["a.c", "abc", "2026", "ü [x](y"]):
        writer(number, text)
    assert texts(store.lines("digits", grep="a.c")) == ["a.c"]
    assert texts(store.lines("digits", grep="[x](")) == ["ü [x](y"]
    assert texts(store.lines("digits", grep="^a.c$", regex=True)) == ["a.c", "abc"]
    assert texts(store.lines("digits", grep="12:00")) == []


def test_a_bad_regular_expression_is_invalid_input(store: LogStore) -> None:
    with pytest.raises(InvalidInput, match="not a regular expression") as raised:
        collect(store.lines("digits", grep="(", regex=True))
    assert raised.value.field == "grep"


def test_a_catastrophic_regular_expression_is_given_up_and_the_loop_goes_on(store: LogStore) -> None:
    Writer(store, 1, "a")(0, "a" * 4000 + "!")

    async def run() -> float:
        longest, last = 0.0, time.monotonic()

        async def beat() -> None:
            nonlocal longest, last
            while True:
                await asyncio.sleep(0.01)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()

        task = asyncio.create_task(beat())
        with pytest.raises(InvalidInput, match="takes too long"):
            [line async for line in store.lines("digits", grep="(a+)+$", regex=True)]
        task.cancel()
        return longest

    assert asyncio.run(run()) < 0.4


# --- follow ----------------------------------------------------------------------------------------------------


def test_follow_gives_what_is_there_and_then_what_comes(store: LogStore) -> None:
    writer = Writer(store, 1, "a")
    writer(0, "before")

    async def act(seen: list[LogLine]) -> None:
        await until(lambda: len(seen) == 1)
        writer(1, "after")
        await until(lambda: len(seen) == 2)

    assert [line.text for line in following(store, act)] == ["before", "after"]


def test_follow_crosses_many_rotations_without_gap_or_repeat(store: LogStore) -> None:
    writer = Writer(store, 1, "a", size=4000, count=90)

    async def act(seen: list[LogLine]) -> None:
        for number in range(2000):
            writer(number, f"line {number}")
            if number % 100 == 0:
                await asyncio.sleep(0.02)
        await until(lambda: bool(seen) and seen[-1].text == "line 1999")

    assert [line.text for line in following(store, act)] == [f"line {number}" for number in range(2000)]


def test_follow_sees_replicas_and_revisions_that_come_later(store: LogStore) -> None:
    first = Writer(store, 1, "a")
    first(0, "one")

    async def act(seen: list[LogLine]) -> None:
        await until(lambda: len(seen) == 1)
        Writer(store, 2, "b")(1, "two")
        await until(lambda: len(seen) == 2)

    assert [(line.revision, line.text) for line in following(store, act)] == [(1, "one"), (2, "two")]


def test_follow_of_one_revision_does_not_show_another(store: LogStore) -> None:
    first = Writer(store, 1, "a")
    first(0, "one")

    async def act(seen: list[LogLine]) -> None:
        await until(lambda: len(seen) == 1)
        Writer(store, 2, "b")(1, "two")
        await asyncio.sleep(logs.POLL * (logs.FULL_LOOK + 2))
        first(2, "three")
        await until(lambda: len(seen) == 2)

    assert [line.text for line in following(store, act, revision=1)] == ["one", "three"]


def test_a_follower_that_stalls_is_told_how_many_lines_it_missed_and_holds_nobody(store: LogStore) -> None:
    writer = Writer(store, 1, "a", size=1 << 20)
    writer(0, "start")

    async def run() -> tuple[list[LogLine], float]:
        seen: list[LogLine] = []
        async with aclosing(store.lines("digits", follow=True)) as lines:
            seen.append(await anext(lines))
            writer(1, "go on")
            seen.append(await anext(lines))
            began = time.monotonic()
            for number in range(60_000):
                writer(2 + number / 1000, f"line {number} " + "x" * 40)
            took = time.monotonic() - began
            async for line in lines:
                seen.append(line)
                if line.text.startswith("line 59999 "):
                    return seen, took
        raise AssertionError("the follower ended")

    seen, took = asyncio.run(run())
    markers = [line for line in seen if line.dropped]
    assert markers
    shown = [line for line in seen if line.text.startswith("line ")]
    assert sum(line.dropped for line in markers) + len(shown) == 60_000
    assert took < 20


def test_many_idle_followers_cost_next_to_nothing(store: LogStore) -> None:
    for replica in range(20):
        Writer(store, 1, f"r{replica}")(0, "here")

    async def run() -> float:
        async def read() -> None:
            async with aclosing(store.lines("digits", follow=True, tail=0)) as lines:
                async for _ in lines:
                    raise AssertionError("nothing was written")

        tasks = [asyncio.create_task(read()) for _ in range(50)]
        await asyncio.sleep(1.0)
        began, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(2.0)
        cost = (time.process_time() - began) / (time.monotonic() - wall)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return cost

    assert asyncio.run(run()) < 0.02


# --- pruning ---------------------------------------------------------------------------------------------------


def test_pruning_takes_the_oldest_revisions_and_keeps_those_that_run(tmp_path: Path) -> None:
    store = LogStore(tmp_path, cap=2500)
    for revision in range(1, 6):
        writer = Writer(store, revision, "a")
        for number in range(20):
            writer(number, f"line {number}")
        writer.close()
    removed = store.prune("digits", keep={1})
    assert removed > 0
    left = sorted(int(path.name) for path in (tmp_path / "digits").iterdir())
    assert left == [1, 4, 5]
    assert store.prune("digits", keep={1}) == 0
    store.remove("digits")
    assert not (tmp_path / "digits").exists()
    store.close()
