"""Many hosts side by side: dead and slow ones are values beside the living."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from quarterdeck_agent import protocol as p
from quarterdeck_console import client, state
from quarterdeck_console import fleet as fleets
from quarterdeck_console.config import Host
from quarterdeck_console.errors import Conflict, ConsoleError, NotFound, Unreachable, exit_code
from tests.console.fake_agent import AT, DEPLOYMENT, STATUS, FakeAgent, problem
from tests.console.running import qd, write_fleet
from tests.console.silent_proxy import SilentProxy


@pytest.fixture
def mixed(tmp_path: Path, agent: FakeAgent) -> Path:
    hosts = {"box": agent.url, "dead": f"unix://{tmp_path}/nobody.sock"}
    return write_fleet(tmp_path / "mixed.toml", hosts)


@pytest.mark.parametrize("verb", ["status", "versions", "operations", "runtimes", "describe digits", "logs digits"])
def test_a_dead_host_beside_a_living_one_is_partial(verb: str, mixed: Path) -> None:
    ran = qd(mixed, *verb.split())
    assert ran.code == 6
    assert "digits" in ran.out or "line 4" in ran.out or "torchscript" in ran.out
    assert "dead cannot be reached" in ran.err


def test_a_dead_host_is_a_row_and_an_error_in_json(mixed: Path) -> None:
    ran = qd(mixed, "hosts", "--json")
    assert ran.code == 6
    assert [(host["host"], host["reachable"]) for host in ran.json["items"]] == [("box", True), ("dead", False)]
    assert [error["code"] for error in ran.json["errors"]] == ["unreachable"]
    assert "unreachable" in qd(mixed, "hosts").out


def test_only_dead_hosts_are_unreachable(mixed: Path) -> None:
    ran = qd(mixed, "status", "--host", "dead", "--json")
    assert ran.code == 5
    assert ran.json["error"]["code"] == "unreachable"


def test_a_stalled_host_delays_nobody_beyond_the_deadline(tmp_path: Path, agent: FakeAgent) -> None:
    with FakeAgent(tmp_path / "slow", stall=True) as slow:
        path = write_fleet(tmp_path / "two.toml", {"box": agent.url, "slow": slow.url})
        began = time.monotonic()
        ran = qd(path, "status", "--deadline", "0.5", "--json")
        assert time.monotonic() - began < 8
    assert ran.code == 6
    assert len(ran.json["items"]) == 1
    assert "did not answer within 0.5 s" in ran.json["errors"][0]["detail"]


def test_hosts_are_chosen_by_glob(mixed: Path) -> None:
    assert qd(mixed, "status", "--host", "b*").code == 0
    ran = qd(mixed, "status", "--host", "gpu-*")
    assert ran.code == 3
    assert "known hosts: box, dead" in ran.err


def test_a_change_among_several_hosts_needs_one_to_be_named(mixed: Path, agent: FakeAgent) -> None:
    ran = qd(mixed, "deploy", "digits:2")
    assert ran.code == 2
    assert "--host" in ran.err
    assert not agent.asked("PUT")
    assert qd(mixed, "deploy", "digits:2", "--host", "box").code == 0
    both = qd(mixed, "deploy", "digits:2", "--host", "*", "--json")
    assert both.code == 6
    assert (len(both.json["items"]), len(both.json["errors"])) == (1, 1)


def test_a_deployment_that_only_one_host_has_is_no_error(tmp_path: Path, agent: FakeAgent) -> None:
    with FakeAgent(tmp_path / "other") as other:
        other.answers["GET /v1/deployments/digits"] = problem(404, "not_found", "There is no deployment digits")
        path = write_fleet(tmp_path / "two.toml", {"box": agent.url, "other": other.url})
        ran = qd(path, "describe", "digits", "--json")
    assert ran.code == 0
    assert [item["host"] for item in ran.json["items"]] == ["box"]


def test_a_wrong_token_is_not_allowed(agent: FakeAgent, fleet: Path) -> None:
    (agent.folder / "token").write_text("wrong")
    assert qd(fleet, "status").code == 4
    (agent.folder / "token").unlink()
    ran = qd(fleet, "status")
    assert ran.code == 4
    assert "there is no token at" in ran.err


def test_one_host_can_be_named_by_the_environment(agent: FakeAgent, tmp_path: Path) -> None:
    ran = qd(tmp_path / "none.toml", "status", "--json", extra={"QUARTERDECK_HOST": agent.url})
    assert [item["host"] for item in ran.json["items"]] == ["local"]


def test_an_answer_that_is_not_the_protocols_is_told_as_such(agent: FakeAgent, fleet: Path) -> None:
    from tests.console.fake_agent import Reply

    agent.answers["GET /v1/status"] = Reply({"info": 3})
    ran = qd(fleet, "status", "--json")
    assert ran.code == 1
    assert ran.json["error"]["code"] == "malformed_answer"


@pytest.mark.parametrize(
    ("errors", "succeeded", "code"),
    [
        ([], 0, 0),
        ([NotFound("x")], 0, 3),
        ([Conflict("x")], 1, 6),
        ([Unreachable("x"), NotFound("x")], 0, 5),
        ([Unreachable("x"), Conflict("x")], 0, 1),
    ],
)
def test_exit_codes_of_many_hosts(errors: list[ConsoleError], succeeded: int, code: int) -> None:
    assert exit_code(errors, succeeded) == code


# --- subscribing -----------------------------------------------------------------------------------------------


def test_a_host_that_falls_silent_without_a_word_is_lost_until_it_answers_again(
    agent: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "QUIET_LIMIT", 0.2)

    async def follow(proxy: SilentProxy) -> list[str]:
        host = Host("box", proxy.url, token_file=str(agent.folder / "token"))
        seen: list[str] = []
        async with contextlib.aclosing(fleets.subscribe(host, first=0.01)) as events:
            async for event in events:
                if event.error is not None:
                    seen.append(event.error.detail)
                elif event.event is not None and event.event.status is not None:
                    seen.append("snapshot")
                    if seen.count("snapshot") == 2:
                        break
                    proxy.silence()
        return seen

    with SilentProxy(tmp_path / "proxy.sock", agent.socket) as proxy:
        seen = asyncio.run(asyncio.wait_for(follow(proxy), 20))
    assert seen == ["snapshot", "box is silent for 0.2 s: the connection is dead", "snapshot"]


def test_a_subscription_resumes_by_the_last_event_after_a_cut(agent: FakeAgent) -> None:
    async def follow() -> list[str]:
        seen: list[str] = []
        async with contextlib.aclosing(fleets.subscribe(Host("box", agent.url), first=0.01)) as events:
            async for event in events:
                if event.error is not None:
                    seen.append("lost")
                elif event.event is not None and event.event.status is not None:
                    seen.append("snapshot")
                    if seen.count("snapshot") == 2:
                        return seen
                    agent.push_event(p.Delta("deployment", "digits", DEPLOYMENT))
                elif event.event is not None and event.event.delta is not None:
                    assert event.event.delta.value == DEPLOYMENT
                    seen.append("delta")
                    agent.cut_streams()
        return seen

    seen = asyncio.run(asyncio.wait_for(follow(), 20))
    assert seen == ["snapshot", "delta", "lost", "snapshot"]
    first, second = agent.asked("GET /v1/watch")[:2]
    assert "last-event-id" not in first.headers
    assert second.headers["last-event-id"] == "c0ffee-2"


def test_a_host_that_is_down_keeps_its_row_and_says_since_when() -> None:
    seen = state.snapshot(state.FleetState.of(("box",)), "box", STATUS, AT)
    later = AT.replace(hour=13)
    gone = state.lost(state.lost(seen, "box", "cut", AT.replace(minute=4)), "box", "refused", later)
    host = gone.hosts["box"]
    assert (host.connection, host.since, host.error) == ("lost", AT.replace(minute=4), "refused")
    assert host.status == STATUS


def test_deltas_change_add_and_remove() -> None:
    seen = state.snapshot(state.FleetState.of(("box",)), "box", STATUS, AT)
    other = dataclasses.replace(DEPLOYMENT, name="other")
    seen = state.delta(seen, "box", p.Delta("deployment", "other", other), AT)
    seen = state.delta(seen, "box", p.Delta("deployment", "digits", None), AT)
    seen = state.delta(seen, "box", p.Delta("gauges", "", None), AT)
    status = seen.hosts["box"].status
    assert status is not None
    assert [each.name for each in status.deployments] == ["other"]
    assert status.gauges is None


def test_merging_ends_with_its_sources_and_raises_what_they_raise() -> None:
    async def count(to: int) -> AsyncGenerator[int, None]:
        for number in range(to):
            yield number

    async def broken() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("broken")

    async def drain() -> None:
        assert sorted([item async for item in fleets.merge([count(300), count(300)])]) == sorted([*range(300)] * 2)
        with pytest.raises(ValueError, match="broken"):
            [item async for item in fleets.merge([count(3), broken()])]

    asyncio.run(asyncio.wait_for(drain(), 20))


def test_merging_that_is_left_in_a_flood_closes_its_sources() -> None:
    closed: list[int] = []

    async def flood(number: int) -> AsyncGenerator[int, None]:
        try:
            while True:
                await asyncio.sleep(0)
                yield number
        finally:
            closed.append(number)

    async def check() -> None:
        async with contextlib.aclosing(fleets.merge([flood(1), flood(2)])) as items:
            async for _ in items:
                await asyncio.sleep(0.2)  # time enough to fill every queue
                break
        assert sorted(closed) == [1, 2], "else the loop closes them in any order, and says so on the terminal"

    asyncio.run(check())


def test_back_off_grows_to_its_bound() -> None:
    pauses = fleets.back_off(0.2, 1.0)
    seen = [next(pauses) for _ in range(10)]
    assert 0.1 <= seen[0] <= 0.2
    assert all(0.5 <= pause <= 1.0 for pause in seen[4:])


def test_watching_tells_of_a_lost_host_and_goes_on(tmp_path: Path, agent: FakeAgent) -> None:
    import subprocess

    from tests.console.running import command, environment

    path = write_fleet(tmp_path / "f.toml", {"box": agent.url, "dead": f"unix://{tmp_path}/nobody.sock"})
    process = subprocess.Popen(
        command("status", "-w", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(path)
    )
    try:
        assert process.stdout is not None
        events = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert {event["type"] for event in events} == {"snapshot", "lost"}
    finally:
        process.kill()
        process.communicate()
