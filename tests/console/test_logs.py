"""Logs: queries, many hosts merged, following across cuts, readers that go away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from quarterdeck_console import client
from quarterdeck_console.client import Client
from quarterdeck_console.config import Host
from quarterdeck_console.operations import LogQuery, _Seen, logs
from tests.console.fake_agent import AT, LINES, FakeAgent, problem
from tests.console.running import command, environment, qd, write_fleet
from tests.console.silent_proxy import SilentProxy


def test_the_query_travels_to_the_agent(agent: FakeAgent, fleet: Path) -> None:
    ran = qd(
        fleet, "logs", "digits", "--since", "2026-01-31T13:00:02+01:00", "--tail", "2", "--grep", "line", "--revision",
        "3", "--previous", "--replica", "r-1", "-t",
    )  # fmt: skip
    assert ran.out == "2026-01-31T12:00:03Z line 3\n2026-01-31T12:00:04Z line 4\n"
    (request,) = agent.asked("GET /v1/deployments/digits/logs")
    assert request.query == {
        "since": "2026-01-31T12:00:02Z", "tail": "2", "grep": "line", "revision": "3", "previous": "true",
        "replica": "r-1",
    }  # fmt: skip


@pytest.mark.parametrize("since", ["yesterday", "5x", "99999999999999d"])
def test_a_time_that_is_none_is_usage(since: str, fleet: Path) -> None:
    assert qd(fleet, "logs", "digits", "--since", since).code == 2


def test_lines_of_many_hosts_are_merged_by_time_with_the_host_in_front(agent: FakeAgent, tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "other") as other:
        other.lines = tuple(replace(line, at=line.at + timedelta(milliseconds=500), text="other") for line in LINES[:2])
        path = write_fleet(tmp_path / "f.toml", {"box": agent.url, "other": other.url})
        ran = qd(path, "logs", "digits")
    assert ran.out.splitlines()[:4] == ["box line 0", "other other", "box line 1", "other other"]


def test_lost_lines_are_marked(agent: FakeAgent, fleet: Path) -> None:
    agent.lines = (replace(LINES[0], dropped=17, text=""),)
    assert qd(fleet, "logs", "digits").out == "[17 lines dropped]\n"
    assert qd(fleet, "logs", "digits", "--json").lines[0]["type"] == "marker"


def test_following_goes_on_after_a_cut_without_gap_or_repeat(agent: FakeAgent, fleet: Path) -> None:
    process = subprocess.Popen(
        command("logs", "digits", "-f"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(fleet)
    )
    try:
        assert process.stdout is not None
        shown = [process.stdout.readline().decode().strip() for _ in range(5)]
        more = replace(LINES[0], at=AT + timedelta(seconds=4), text="same time")
        agent.lines = (*LINES, more, replace(more, at=AT + timedelta(seconds=9), text="later"))
        agent.cut_streams()
        shown += [process.stdout.readline().decode().strip() for _ in range(2)]
        assert shown == ["line 0", "line 1", "line 2", "line 3", "line 4", "same time", "later"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 130
        assert b"following goes on when it is back" in err
        assert b"Traceback" not in err
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("cut", ["the stream is silent", "the stream and what is asked next are silent"])
def test_a_network_that_dies_without_a_word_is_noticed(
    cut: str, agent: FakeAgent, fleet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.heartbeat = 0.1
    monkeypatch.setattr(client, "HEAD_LIMIT", 1.0)

    host = Host("box", f"unix://{tmp_path / 'proxy.sock'}", token_file=str(agent.folder / "token"))

    async def followed(proxy: SilentProxy) -> AsyncGenerator[str, None]:
        async with contextlib.aclosing(logs([host], "digits", LogQuery(follow=True))) as items:
            async for item in items:
                yield item.line.text if item.line is not None else item.note
                if item.line == LINES[-1]:
                    agent.lines = (*LINES, replace(LINES[0], at=AT + timedelta(seconds=9), text="later"))
                    agent.stall = cut.endswith("next are silent")
                    proxy.silence()
                if item.note:
                    while agent.stall and proxy.connections < 3:  # noqa: ASYNC110 - another thread counts
                        await asyncio.sleep(0.01)
                    agent.stall = False

    async def story(proxy: SilentProxy) -> list[str]:
        async with asyncio.timeout(30), contextlib.aclosing(followed(proxy)) as told:
            return [await anext(told) for _ in range(len(LINES) + 2)]

    with SilentProxy(tmp_path / "proxy.sock", agent.socket) as proxy:
        found = asyncio.run(story(proxy))
    assert found == [
        *(line.text for line in LINES),
        "box is silent for 0.4 s: the connection is dead; following goes on when it is back",
        "later",
    ]


def test_an_agent_that_tells_of_no_heartbeat_may_be_silent(agent: FakeAgent, fleet: Path) -> None:
    async def story() -> None:
        query = {"follow": True}
        async with Client(Host("box", agent.url)) as one, contextlib.aclosing(one.logs("digits", query)) as lines:
            for _ in LINES:
                await anext(lines)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(lines), 1.0)

    asyncio.run(story())


def test_a_line_that_was_printed_twice_is_shown_twice() -> None:
    seen = _Seen()
    assert seen.is_new(LINES[0])
    assert seen.is_new(LINES[0])
    seen.resume()
    assert [seen.is_new(LINES[0]) for _ in range(3)] == [False, False, True]


def test_a_reader_that_goes_away_ends_it_quietly(agent: FakeAgent, fleet: Path) -> None:
    agent.lines = tuple(replace(LINES[0], at=AT + timedelta(seconds=n), text="x" * 500) for n in range(2000))
    reader, writer = os.pipe()
    process = subprocess.Popen(command("logs", "digits"), stdout=writer, stderr=subprocess.PIPE, env=environment(fleet))
    os.close(writer)
    os.read(reader, 100)
    os.close(reader)
    _, err = process.communicate(timeout=30)
    assert err == b""
    assert process.returncode == 1


def test_logs_of_what_nobody_has_are_not_found(agent: FakeAgent, fleet: Path) -> None:
    agent.answers["GET /v1/deployments/nothing/logs"] = problem(404, "not_found", "There is no deployment nothing")
    for arguments in (["--json"], []):
        assert qd(fleet, "logs", "nothing", *arguments).code == 3
