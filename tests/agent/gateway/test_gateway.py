"""The gateway on the real Envoy: what consumers see while deployments come, go, switch, fill up and fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quarterdeck_agent.drivers.base import GatewaySeen
from quarterdeck_agent.drivers.envoy import EnvoyGateway
from quarterdeck_agent.errors import GatewayError
from quarterdeck_agent.protocol import Limits
from quarterdeck_agent.routing import Route, Target
from tests.agent.gateway.conftest import MakeGateway
from tests.agent.gateway.parts import Answer, Client, Load, Upstream, ask, configured, free_port, until

pytestmark = pytest.mark.envoy


def route(revision: int | None, *upstreams: tuple[int, Upstream], **options: Any) -> Route:
    """Deployment `digits`: one cluster for each revision that is named, with all its upstreams."""
    revisions = dict.fromkeys([number for number, _ in upstreams] + ([revision] if revision else []))
    clusters = tuple(Target(r, tuple(u.address for number, u in upstreams if number == r)) for r in revisions)
    return Route("digits", revision, clusters=clusters, **options)


def run(test: Callable[[], Coroutine[Any, Any, None]], deadline: float = 90) -> None:
    asyncio.run(asyncio.wait_for(test(), deadline))


async def seen(gateway: EnvoyGateway, condition: Callable[[GatewaySeen], bool], deadline: float = 15) -> GatewaySeen:
    ends = time.monotonic() + deadline
    while not condition(found := await gateway.observe()):
        assert time.monotonic() < ends, found
        await asyncio.sleep(0.02)
    return found


def written(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def assert_problem(answer: Answer, status: int, code: str) -> None:
    body = json.loads(answer.body)
    assert (answer.status, body["status"], body["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["detail"] and body["title"]


def test_a_request_reaches_the_replica_by_path_and_by_host(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one:
            await gateway.apply(configured(gateway, route(1, (1, one))))

            for path, host, got in [
                ("/digits", "gw", "/"),
                ("/digits/", "gw", "/"),
                ("/digits/v2/x?a=1", "gw", "/v2/x?a=1"),
                ("/x", "digits", "/x"),
                ("/x", "DIGITS.lan:81", "/x"),
            ]:
                answer = await ask(gateway, path, host=host)
                assert (answer.status, answer.body.decode()) == (200, f"one {got} 0")
                assert answer.headers["x-quarterdeck-revision"] == "1"
            assert (await ask(gateway, "/digits", x_request_id="mine-7")).headers["x-request-id"] == "mine-7"
            assert len((await ask(gateway, "/digits")).headers["x-request-id"]) == 36

    run(test)


def test_refusals_are_problem_documents(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        limits = Limits(timeout=0.3)
        async with Upstream("one").listening() as one:
            await gateway.apply(
                configured(
                    gateway,
                    route(1, (1, one), limits=limits),
                    Route("asleep", 1, clusters=(Target(1),), stopped=True),
                    Route("young", None),
                )
            )

            assert_problem(await ask(gateway, "/digits2/x"), 404, "not_found")
            stopped = await ask(gateway, "/asleep/x")
            assert_problem(stopped, 503, "stopped")
            assert int(stopped.headers["retry-after"]) > 0
            assert_problem(await ask(gateway, "/young"), 503, "not_serving")
            assert_problem(await ask(gateway, "/digits/wait"), 504, "timeout")
            assert_problem(await ask(gateway, "/digits/drop"), 502, "replica_failed")

    run(test)


def test_a_client_cannot_steer_the_gateway_by_headers(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one:
            await gateway.apply(configured(gateway, route(1, (1, one), limits=Limits(timeout=20))))
            async with Client(gateway) as client:
                asking = asyncio.create_task(
                    client.ask("/digits/wait", x_envoy_upstream_rq_per_try_timeout_ms="1", x_envoy_max_retries="0")
                )
                await until(lambda: one.running == 1)
                await asyncio.sleep(0.1)
                one.release.set()
                assert (await asking).status == 200

    run(test)


def test_twenty_switches_under_load_lose_nothing_and_cut_no_stream(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        load = Load(gateway, "/digits")
        async with Upstream("one").listening() as one, Upstream("two").listening() as two:
            both = ((1, one), (2, two))
            await gateway.apply(configured(gateway, route(1, *both)))
            async with Client(gateway) as stream, load.running(clients=4):
                head = await stream.send("/digits/sse")
                assert "200 OK" in head
                await until(lambda: load.answers.get("one", 0) > 50)
                for turn in range(20):
                    name, revision = ("two", 2) if turn % 2 == 0 else ("one", 1)
                    await gateway.apply(configured(gateway, route(revision, *both)))
                    before = load.answers.get(name, 0)
                    await until(lambda name=name, before=before: load.answers.get(name, 0) > before + 20)  # type: ignore[misc]
                await gateway.apply(configured(gateway, route(2, (2, two))))
                kept = await seen(gateway, lambda found: found.active.get("digits.1") == 1)
                assert kept.requests[f"127.0.0.1:{one.address[1]}"] == 1
                one.finish.set()
                await asyncio.wait_for(stream.reader.readuntil(b"end\n\n"), 10)
                await seen(gateway, lambda found: "digits.1" not in found.active)
        assert load.failures == []
        assert load.count > 800

    run(test)


def test_the_switch_takes_effect_with_the_answer_of_apply(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one, Upstream("two").listening() as two:
            both = ((1, one), (2, two))
            for turn in range(20):
                name, revision = ("two", 2) if turn % 2 == 0 else ("one", 1)
                resources = configured(gateway, route(revision, *both))
                begun = time.monotonic()
                await gateway.apply(resources)
                elapsed = time.monotonic() - begun
                assert (await ask(gateway, "/digits")).body.decode().startswith(name)
                assert (await gateway.observe()).applied == resources.digest
                assert elapsed < 2, "apply is on the path of a warm rollback"

    run(test)


def test_a_hundred_requests_are_held_and_then_delivered(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        await gateway.apply(configured(gateway, route(2, holding=True)))
        large = b"x" * 5_000_000
        asking = [asyncio.create_task(ask(gateway, "/digits/v", body=large))]
        asking += [asyncio.create_task(ask(gateway, "/digits/v")) for _ in range(99)]
        await seen(gateway, lambda found: found.active.get("digits.2") == 100)
        assert not any(task.done() for task in asking)
        async with Upstream("two").listening() as two:
            await gateway.apply(configured(gateway, route(2, (2, two))))
            begun = time.monotonic()
            answers = await asyncio.gather(*asking)
            assert time.monotonic() - begun < 5
            assert {answer.status for answer in answers} == {200}
            assert answers[0].body.decode() == "two /v 5000000"
            await seen(gateway, lambda found: found.active.get("digits.2") == 0)
            assert (await gateway.stats())["digits.2"].total == 100

    run(test)


def test_who_waits_for_a_revision_that_failed_gets_the_restored_one(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        await gateway.apply(configured(gateway, route(2, holding=True)))
        waiting = asyncio.create_task(ask(gateway, "/digits"))
        await seen(gateway, lambda found: found.active.get("digits.2") == 1)
        async with Upstream("one").listening() as one:
            await gateway.apply(configured(gateway, route(1, (1, one), (2, one))))
            assert (await waiting).body.decode().startswith("one")

    run(test)


def test_a_request_survives_the_restart_of_the_only_replica(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        port = free_port()
        crashed = Upstream("one", address=("127.0.0.1", port))
        await gateway.apply(configured(gateway, route(1, (1, crashed))))
        waiting = asyncio.create_task(ask(gateway, "/digits"))
        await seen(gateway, lambda found: found.active.get("digits.1") == 1)
        async with Upstream("again").listening(port):
            assert (await waiting).body.decode().startswith("again")

    run(test)


def test_nobody_waits_longer_than_the_limit(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        await gateway.apply(configured(gateway, route(2, holding=True, limits=Limits(timeout=0.2, hold=0.5))))
        begun = time.monotonic()
        assert_problem(await ask(gateway, "/digits"), 504, "timeout")
        assert time.monotonic() - begun >= 0.6

    run(test)


def test_replicas_get_no_more_than_the_limit_and_the_rest_is_sent_away(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one:
            await gateway.apply(configured(gateway, route(1, (1, one), limits=Limits(in_flight=2, queue=4))))
            admitted = []
            for _ in range(6):
                admitted.append(asyncio.create_task(ask(gateway, "/digits/wait")))
                await seen(gateway, lambda found: found.active.get("digits.1") == len(admitted))
            for _ in range(3):
                refused = await ask(gateway, "/digits/wait")
                assert_problem(refused, 429, "overloaded")
                assert int(refused.headers["retry-after"]) > 0
            figures = (await gateway.stats())["digits.1"]
            assert (figures.active, figures.held, figures.refused) == (2, 4, 3)
            one.release.set()
            assert {answer.status for answer in await asyncio.gather(*admitted)} == {200}
            assert one.most == 2

    run(test)


def test_more_than_the_queue_are_not_held_either(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        limits = Limits(in_flight=1, queue=3)
        await gateway.apply(configured(gateway, route(1, holding=True, limits=limits)))
        held = await holding(gateway, 3)
        refused = await ask(gateway, "/digits")
        assert_problem(refused, 429, "overloaded")
        assert int(refused.headers["retry-after"]) > 0
        async with Upstream("one").listening() as one:
            await gateway.apply(configured(gateway, route(1, (1, one), limits=limits)))
            assert {answer.status for answer in await asyncio.gather(*held)} == {200}

    run(test)


def test_no_held_request_is_refused_when_all_try_again_at_one_moment(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        assert gateway.pid is not None
        limits = Limits(in_flight=4, queue=8)
        await gateway.apply(configured(gateway, route(1, holding=True, limits=limits)))
        held = await holding(gateway, 8)
        for _ in range(3):
            os.kill(gateway.pid, signal.SIGSTOP)
            await asyncio.sleep(0.5)  # longer than the longest pause between two tries: now all of them are due
            os.kill(gateway.pid, signal.SIGCONT)
            await seen(gateway, lambda found: found.active.get("digits.1") == len(held))
        async with Upstream("one").listening() as one:
            await gateway.apply(configured(gateway, route(1, (1, one), limits=limits)))
            assert {answer.status for answer in await asyncio.gather(*held)} == {200}

    run(test)


async def holding(gateway: EnvoyGateway, count: int) -> list[asyncio.Task[Answer]]:
    """So many requests that wait for a replica."""
    held: list[asyncio.Task[Answer]] = []
    for _ in range(count):
        held.append(asyncio.create_task(ask(gateway, "/digits")))
        await seen(gateway, lambda found: found.active.get("digits.1") == len(held))
    return held


def test_requests_go_to_the_idlest_replica(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one, Upstream("two").listening() as two:
            await gateway.apply(configured(gateway, route(1, (1, one), (1, two))))
            asking = []
            for count in range(1, 21):
                asking.append(asyncio.create_task(ask(gateway, "/digits/wait")))
                await until(lambda count=count: one.running + two.running == count)  # type: ignore[misc]
            assert abs(one.running - two.running) <= 4
            one.release.set()
            two.release.set()
            await asyncio.gather(*asking)

    run(test)


def test_an_endpoint_that_leaves_gets_nothing_new_and_is_counted_until_idle(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one, Upstream("two").listening() as two:
            address = f"127.0.0.1:{one.address[1]}"
            await gateway.apply(configured(gateway, route(1, (1, one))))
            asking = asyncio.create_task(ask(gateway, "/digits/wait"))
            await until(lambda: one.running == 1)
            await gateway.apply(configured(gateway, route(1, (1, two))))
            for _ in range(10):
                assert (await ask(gateway, "/digits")).body.decode().startswith("two")
            await asyncio.sleep(1.2)  # long enough for the driver to tidy up what is idle
            assert (await gateway.observe()).requests[address] == 1
            await gateway.apply(configured(gateway, route(1)))
            held = asyncio.create_task(ask(gateway, "/digits"))
            await asyncio.sleep(0.3)  # time to go wrong in
            assert not held.done()
            assert one.served == 1, "a draining endpoint is no refuge for requests without another"
            one.release.set()
            assert (await asking).status == 200
            await seen(gateway, lambda found: address not in found.requests)
            await gateway.apply(configured(gateway, route(1, (1, one))))
            assert (await held).body.decode().startswith("one")

    run(test)


def test_a_stream_outlives_the_timeout_and_a_websocket_passes(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one, contextlib.AsyncExitStack() as clients:
            await gateway.apply(configured(gateway, route(1, (1, one), limits=Limits(timeout=0.5))))
            stream = await clients.enter_async_context(Client(gateway))
            socket = await clients.enter_async_context(Client(gateway))
            await stream.send("/digits/sse")
            begun = time.monotonic()
            for _ in range(25):
                await asyncio.wait_for(stream.reader.readuntil(b"one\n\n"), 5)
            assert time.monotonic() - begun > 1
            head = await socket.send("/digits/ws", connection="Upgrade", upgrade="websocket")
            assert " 101 " in head
            for text in (b"\x81\x02hi", b"\x00\xff" * 500):
                socket.writer.write(text)
                assert await asyncio.wait_for(socket.reader.readexactly(len(text)), 5) == text
            await seen(gateway, lambda found: found.active.get("digits.1") == 2)

    run(test)


def test_another_gateway_object_adopts_the_running_envoy(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        first = make_gateway(port=(port := free_port()))
        await first.ensure()
        async with Upstream("one").listening() as one:
            resources = configured(first, route(1, (1, one)))
            await first.apply(resources)
            await first.close()
            second = make_gateway(port=port)
            await second.ensure()
            assert second.pid == first.pid
            assert (await second.observe()).applied == resources.digest
            await second.ensure()
            assert (await ask(second, "/digits")).status == 200

    run(test)


def test_a_killed_envoy_is_started_again_with_what_it_had(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one:
            resources = configured(gateway, route(1, (1, one)))
            await gateway.apply(resources)
            pid = gateway.pid
            assert pid is not None
            os.kill(pid, 9)
            await until(lambda: gateway.pid is None)
            await gateway.ensure()
            assert gateway.pid not in (None, pid)
            assert (await seen(gateway, lambda found: found.applied is not None)).applied == resources.digest
            assert (await ask(gateway, "/digits")).status == 200

    run(test)


def test_an_envoy_that_hangs_is_told_in_time_and_not_doubled(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        port = free_port()
        await make_gateway(port=port).ensure()
        gateway = make_gateway(port=port, deadline=0.5)
        pid = gateway.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        for question in (gateway.observe, gateway.ensure):
            with pytest.raises(GatewayError, match="did not answer"):
                await asyncio.wait_for(question(), 5)
        os.kill(pid, signal.SIGCONT)
        await make_gateway(port=port).ensure()
        assert gateway.pid == pid

    run(test)


def test_the_gateway_outlives_the_agents_process(make_gateway: MakeGateway, folder: Path) -> None:
    script = (
        "import asyncio, os, pathlib, sys\n"
        "from quarterdeck_agent.drivers.envoy import EnvoyGateway, find_binary\n"
        "async def main():\n"
        "    g = EnvoyGateway(pathlib.Path(sys.argv[1]), find_binary(), '127.0.0.1', int(sys.argv[2]))\n"
        "    await g.ensure()\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )

    async def test() -> None:
        port = free_port()
        agent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, str(folder / "g"), str(port), start_new_session=True
        )
        assert await agent.wait() == -9
        gateway = make_gateway(port=port)
        pid = gateway.pid
        assert pid is not None
        assert os.getsid(pid) != os.getsid(0)
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == hard
        await gateway.ensure()
        async with Upstream("one").listening() as one:
            await gateway.apply(configured(gateway, route(1, (1, one))))
            assert (await ask(gateway, "/digits")).status == 200
        assert gateway.pid == pid

    run(test)


def test_a_refused_configuration_tells_why_and_leaves_the_old_one_serving(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one:
            good = configured(gateway, route(1, (1, one)))
            await gateway.apply(good)
            bad = replace(good, clusters=({**good.clusters[0], "connect_timeout": "-1s"},), digest="bad")
            with pytest.raises(GatewayError, match="positive duration"):
                await gateway.apply(bad)
            wrong: Any = json.loads(json.dumps(good.routes))
            wrong[0]["virtual_hosts"].append({"name": "again", "domains": ["*"]})
            with pytest.raises(GatewayError, match="single wildcard domain"):
                await gateway.apply(replace(good, routes=tuple(wrong), digest="wrong"))
            other = configured(gateway, Route("other", 1, clusters=(Target(1),)))
            with pytest.raises(GatewayError, match="single wildcard domain"):
                await gateway.apply(replace(other, routes=tuple(wrong), digest="other"))
            await asyncio.sleep(1.2)  # long enough for the driver to tidy up what it should not
            await gateway.observe()
            assert (await ask(gateway, "/digits")).status == 200
            await gateway.apply(good)
            assert (await gateway.observe()).applied == good.digest
            await seen(gateway, lambda found: set(found.active) == {"digits.1"})

    run(test)


def test_a_taken_port_is_told_and_used_once_it_is_free(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway(port=(port := free_port()))
        async with Upstream("one").listening() as one:
            async with Upstream("other").listening(port):
                await gateway.ensure()
                resources = configured(gateway, route(1, (1, one)))
                with pytest.raises(GatewayError, match="Address already in use") as refused:
                    await gateway.apply(resources)
                assert refused.value.hint is not None and f"127.0.0.1:{port}" in refused.value.hint
                assert (await gateway.observe()).applied is None
            await gateway.apply(resources)
            assert (await ask(gateway, "/digits")).body.decode().startswith("one")
            assert (await gateway.observe()).applied == resources.digest

    run(test)


def test_two_gateways_live_side_by_side_and_not_on_one_port(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        left, right = make_gateway("left"), make_gateway("right")
        await left.ensure()
        await right.ensure()
        assert left.pid != right.pid
        async with Upstream("one").listening() as one, Upstream("two").listening() as two:
            await left.apply(configured(left, route(1, (1, one))))
            await right.apply(configured(right, route(1, (1, two))))
            assert (await ask(left, "/digits")).body.decode().startswith("one")
            assert (await ask(right, "/digits")).body.decode().startswith("two")
            third = make_gateway("third", port=int(left.url.rpartition(":")[2]))
            await third.ensure()
            with pytest.raises(GatewayError, match="Address already in use"):
                await third.apply(configured(third, route(1, (1, two))))

    run(test)


def test_figures_tell_counts_errors_and_latencies(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one:
            await gateway.apply(configured(gateway, route(1, (1, one))))
            for _ in range(10):
                await ask(gateway, "/digits")
            await ask(gateway, "/digits/drop")
            ends = time.monotonic() + 10
            while (figures := (await gateway.stats())["digits.1"]).p50 is None:
                assert time.monotonic() < ends
                await asyncio.sleep(0.05)
            assert (figures.total, figures.errors, figures.active) == (11, 1, 0)
            assert figures.p99 is not None and 0 <= figures.p50 <= figures.p99 < 5
            assert (await gateway.stats())["digits.1"].p50 is None

    run(test)


def test_the_access_log_is_json_without_queries_and_can_be_rotated(make_gateway: MakeGateway) -> None:
    async def test() -> None:
        gateway = make_gateway()
        await gateway.ensure()
        async with Upstream("one").listening() as one:
            await gateway.apply(configured(gateway, route(1, (1, one))))
            await ask(gateway, "/digits/v2?token=secret", x_request_id="first")
            await until(lambda: "first" in written(gateway.access_log))
            entry = json.loads(written(gateway.access_log).splitlines()[0])
            assert (entry["deployment"], entry["cluster"], entry["path"]) == ("digits", "digits.1", "/v2")
            assert "secret" not in written(gateway.access_log)
            assert not await gateway.rotate_access_log(1_000_000)
            assert await gateway.rotate_access_log(1)
            await ask(gateway, "/digits", x_request_id="second")
            await until(lambda: "second" in written(gateway.access_log))
            assert "first" not in written(gateway.access_log)
            assert "first" in written(f"{gateway.access_log}.1")

    run(test)


def test_a_socket_path_that_is_too_long_is_refused_at_once(folder: Path) -> None:
    with pytest.raises(GatewayError, match="longer than"):
        EnvoyGateway(folder / ("x" * 120), "envoy", "127.0.0.1", 8080)


def test_a_gateway_that_cannot_start_says_what_it_said(folder: Path) -> None:
    binary = folder / "envoy"
    binary.write_text("#!/bin/sh\necho no such luck >&2\nexit 3\n")
    binary.chmod(0o755)

    with pytest.raises(GatewayError, match="no such luck"):
        run(EnvoyGateway(folder / "g", str(binary), "127.0.0.1", free_port()).ensure)


def test_a_supervised_gateway_is_waited_for_and_never_started(folder: Path) -> None:
    gateway = EnvoyGateway(folder / "g", "/nonexistent", "127.0.0.1", free_port(), supervised=True, deadline=0.2)
    with pytest.raises(GatewayError) as refused:
        run(gateway.ensure)
    assert refused.value.hint == "systemctl status quarterdeck-gateway"
    assert gateway.pid is None
