"""The server on its socket: modes, stale sockets, streams, deadlines, slow clients, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from quarterdeck_agent.api.guard import Bounds
from quarterdeck_agent.api.ports import Parts
from quarterdeck_agent.api.serve import Serving, listen
from quarterdeck_agent.api.streams import ndjson
from quarterdeck_agent.board import HEARTBEAT
from quarterdeck_agent.errors import SettingsError
from quarterdeck_agent.protocol import HEARTBEAT_HEADER
from tests.agent.api.builders import part
from tests.agent.api.fakes import TOKEN, Running, running

HEAD = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode()


def raw(live: Running) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(live.path))
    return connection


def until_closed(connection: socket.socket) -> bytes:
    got = b""
    try:
        while piece := connection.recv(65536):
            got += piece
    except ConnectionResetError:
        pass
    return got


class Events:
    """Reads server-sent events off a response."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()

    def next(self) -> tuple[str, str, Any]:
        found: dict[str, str] = {}
        for line in self._lines:
            if not line:
                return found["id"], found["event"], json.loads(found["data"])
            name, _, value = line.partition(": ")
            found[name] = value
        raise EOFError


def test_the_socket_is_the_users_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    with running(tmp_path) as live:
        assert stat.S_IMODE(live.path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == []


def test_a_socket_that_nobody_answers_on_is_replaced(tmp_path: Path) -> None:
    listen(tmp_path / "agent.sock").close()
    assert (tmp_path / "agent.sock").is_socket()
    with running(tmp_path) as live:
        assert live.client().get("/v1/hello").status_code == 200


def test_a_socket_that_answers_is_left_alone(tmp_path: Path) -> None:
    with running(tmp_path) as live:
        with pytest.raises(SettingsError, match="Another agent answers"):
            listen(live.path)
        assert live.client().get("/v1/hello").status_code == 200


def test_a_file_in_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "agent.sock").write_text("mine")
    with pytest.raises(SettingsError, match="not a socket"):
        listen(tmp_path / "agent.sock")
    assert (tmp_path / "agent.sock").read_text() == "mine"


def test_a_watcher_gets_a_snapshot_then_deltas_and_resumes_where_it_was(api: Running) -> None:
    with api.client().stream("GET", "/v1/watch") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = Events(response)
        first, kind, status = events.next()
        assert (kind, status["info"]["name"]) == ("snapshot", "cpu-1")
        api.publish("part", "engine", part("engine"))
        _, kind, delta = events.next()
        assert (kind, delta["kind"], delta["key"], delta["value"]["state"]) == ("delta", "part", "engine", "ok")
    api.publish("part", "engine", None)
    with api.client().stream("GET", "/v1/watch", headers={"last-event-id": first}) as response:
        events = Events(response)
        assert events.next()[2]["value"]["name"] == "engine"
        assert events.next()[2] == {"kind": "part", "key": "engine", "value": None}


def test_logs_come_as_one_object_a_line(api: Running) -> None:
    response = api.client().get("/v1/deployments/there/logs?tail=5")
    assert response.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line)["text"] for line in response.text.splitlines()] == ["line 0", "line 1", "line 2"]


def test_silent_logs_send_empty_lines_and_say_how_often(api: Running) -> None:
    async def told() -> list[bytes]:
        chunks = ndjson(api.logs.lines("there", revision=None, follow=True), heartbeat=0.01)
        found = [await anext(chunks) for _ in range(3)]
        await chunks.aclose()
        return found

    first, *others = asyncio.run(told())
    assert first.endswith(b"}\n")
    assert others == [b"\n", b"\n"]
    headers = api.client().get("/v1/deployments/there/logs?tail=5").headers
    assert headers[HEARTBEAT_HEADER] == f"{HEARTBEAT:g}"


def test_a_follower_that_goes_away_lets_go_of_the_logs(api: Running) -> None:
    api.logs.closed.clear()
    with api.client().stream("GET", "/v1/deployments/there/logs?follow=true") as response:
        lines = response.iter_lines()
        assert [json.loads(next(lines))["text"] for _ in range(3)] == ["line 0", "line 1", "line 2"]
        assert not api.logs.closed.is_set()
    assert api.logs.closed.wait(5)


def test_closing_ends_open_streams_well_within_two_seconds(tmp_path: Path) -> None:
    with running(tmp_path) as live:
        watching = live.client().stream("GET", "/v1/watch")
        following = live.client().stream("GET", "/v1/deployments/there/logs?follow=true")
        with watching as one, following as two, raw(live) as stalled:
            stalled.sendall(b"GET /v1/watch HTTP/1.1\r\n" + HEAD + b"\r\n")
            Events(one).next()
            next(lines := two.iter_lines())
            began = time.monotonic()
            live.run(live.server.close())
            assert time.monotonic() - began < 2
            assert len(list(lines)) == 2


def test_headers_that_trickle_in_are_cut_off(tmp_path: Path) -> None:
    with running(tmp_path, Serving(header_deadline=0.4)) as live:
        for opening in (b"", b"\r\n", b"GET /v1/status HTTP/1.1\r\nX: "):
            with raw(live) as connection:
                began = time.monotonic()
                connection.sendall(opening)
                try:
                    while time.monotonic() - began < 5:
                        connection.sendall(b"\r\n" if opening == b"\r\n" else b"x" if opening else b"")
                        connection.settimeout(0.05)
                        try:
                            if not connection.recv(1):
                                break
                        except TimeoutError:
                            continue
                except (BrokenPipeError, ConnectionResetError):
                    pass
                assert time.monotonic() - began < 3, opening


def test_a_kept_connection_outlives_the_header_deadline(tmp_path: Path) -> None:
    with running(tmp_path, Serving(header_deadline=0.2)) as live, raw(live) as connection:
        for _ in range(2):
            connection.sendall(b"GET /v1/hello HTTP/1.1\r\n" + HEAD + b"\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(65536) or b"closed}"
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.4)  # what is tested is that nothing happens in this time


def test_a_body_that_stalls_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, bounds=Bounds(body_idle=0.3)) as live, raw(live) as connection:
        connection.sendall(
            b"PUT /v1/deployments/d HTTP/1.1\r\n"
            + HEAD
            + b"content-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        answer = until_closed(connection)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"too_slow"' in answer


def test_an_upload_that_is_cut_keeps_what_came(api: Running) -> None:
    digest = "e" * 64
    api.blobs.cut.clear()
    with raw(api) as connection:
        head = f"PUT /v1/blobs/{digest}?size=5000000 HTTP/1.1\r\n".encode() + HEAD
        connection.sendall(head + b"content-length: 5000000\r\n\r\n" + b"x" * 1_500_000)
    assert api.blobs.cut.wait(5)
    assert api.blobs.offset(digest) == 1_500_000


def test_garbage_is_answered_with_a_problem(api: Running) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"GET \xff HTTP/1.1\r\n\r\n", b"G" * 70_000):
        with raw(api) as connection:
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(garbage)
            assert b"application/problem+json" in until_closed(connection)


def test_headers_without_end_are_cut_off(api: Running) -> None:
    with raw(api) as connection:
        try:
            for _ in range(200):
                connection.sendall(b"X-A: " if _ else b"GET / HTTP/1.1\r\nX-A: ")
                connection.sendall(b"x" * 10_000)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert until_closed(connection).startswith(b"HTTP/1.1 431")


def test_a_request_with_two_lengths_is_refused(api: Running) -> None:
    with raw(api) as connection:
        connection.sendall(
            b"POST /v1/deployments/there/stop HTTP/1.1\r\n"
            + HEAD
            + b"content-length: 4\r\ntransfer-encoding: chunked\r\n"
            b"\r\n0\r\n\r\nGET /v1/hello HTTP/1.1\r\n" + HEAD + b"\r\n"
        )
        assert until_closed(connection).startswith(b"HTTP/1.1 400")


def test_connections_beyond_the_cap_are_turned_away(tmp_path: Path) -> None:
    with running(tmp_path, Serving(connections=3)) as live:
        held = [raw(live) for _ in range(3)]
        for connection in held:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        with raw(live) as one_more:
            assert b'"too_busy"' in until_closed(one_more)
        for connection in held:
            connection.close()


def test_an_error_nobody_foresaw_is_a_problem_without_its_traceback(tmp_path: Path) -> None:
    async def broken() -> tuple[()]:
        raise RuntimeError("secret place /etc/shadow")

    def change(parts: Parts) -> Parts:
        return dataclasses.replace(parts, doctor=broken)

    with running(tmp_path, change=change) as live:
        response = live.client().get("/v1/doctor")
        assert response.status_code == 500
        assert response.json()["code"] == "internal"
        assert response.headers["x-request-id"] in response.json()["hint"]
        assert "secret" not in response.text
        assert live.client().get("/v1/hello").status_code == 200


AGENT = """
    import asyncio, signal, sys
    from pathlib import Path
    from tests.agent.api.fakes import TOKEN, parts
    from quarterdeck_agent.api.access import LocalToken
    from quarterdeck_agent.api.app import build
    from quarterdeck_agent.api.serve import Server

    async def main():
        behind = parts()
        server = Server(build(behind, LocalToken(TOKEN)), Path(sys.argv[1]), behind.stop)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, behind.stop.set)
        await server.start()
        print("ready", flush=True)
        await behind.stop.wait()
        await server.close()

    asyncio.run(main())
"""


def test_a_process_with_an_open_stream_ends_within_two_seconds_of_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    argv = [sys.executable, "-c", textwrap.dedent(AGENT), str(path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        client = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost")
        with client, client.stream("GET", "/v1/watch", headers={"authorization": f"Bearer {TOKEN}"}) as response:
            Events(response).next()
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(5) == 0
            assert time.monotonic() - began < 2
    assert not path.exists()


def test_a_slow_watcher_delays_nobody(api: Running) -> None:
    with raw(api) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.sendall(b"GET /v1/watch HTTP/1.1\r\n" + HEAD + b"\r\n")

        async def storm() -> None:
            for number in range(3_000):
                api.parts.board.publish("part", "engine", part(f"engine {number}"))
                if number % 100 == 0:
                    await asyncio.sleep(0)

        began = time.monotonic()
        api.run(storm())
        assert api.client().get("/v1/hello").status_code == 200
        assert time.monotonic() - began < 5
    api.publish("part", "engine", None)
