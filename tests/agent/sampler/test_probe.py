"""The probe against real sockets: servers that answer well, badly, slowly, or with hostile bytes."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pytest

from quarterdeck_agent.drivers import probe
from quarterdeck_agent.drivers.probe import Address, GoldenResult, ProbeResult, difference

NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Recorded:
    name: str = "five"
    path: str | None = None
    method: str = "POST"
    body: object = None
    expect: object = None
    tolerance: float = 0.0
    status: int = 200
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class Server:
    """Answers each connection with `raw` once the request is whole, then closes or, `stay_open`, waits to be left."""

    raw: bytes
    received: list[bytes] | None = None
    stay_open: bool = False

    @contextmanager
    def serve(self) -> Iterator[Address]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=self._answer_one, args=(listener,))
            thread.start()
            try:
                yield listener.getsockname()
            finally:
                with suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                thread.join()

    def _answer_one(self, listener: socket.socket) -> None:
        with suppress(OSError), listener.accept()[0] as connection:
            request = _read_request(connection)
            if self.received is not None:
                self.received.append(request)
            connection.sendall(self.raw)
            if self.stay_open:
                connection.recv(1)


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            while len(body) < int(line.split(b":")[1]):
                body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def json_answer(value: object, status: str = "200 OK") -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def ask_ready(server: Server, path: str = "/health", deadline: float = 3.0) -> ProbeResult:
    with server.serve() as address:
        return asyncio.run(probe.ready(address, path, deadline))


def ask_golden(server: Server, recorded: Recorded, deadline: float = 5.0) -> GoldenResult:
    with server.serve() as address:
        return asyncio.run(probe.golden(address, recorded, "/predict", deadline))


# --- ready -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 204, 299])
def test_any_2xx_is_ready(status: int) -> None:
    assert ask_ready(Server(b"HTTP/1.1 %d X\r\n\r\n" % status)) == ProbeResult(True)


def test_ready_does_not_wait_for_a_body_that_never_ends() -> None:
    assert ask_ready(Server(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", stay_open=True)).ok


@pytest.mark.parametrize("status", [302, 404, 503])
def test_another_status_is_not_ready_and_says_which(status: int) -> None:
    result = ask_ready(Server(b"HTTP/1.1 %d X\r\n\r\n" % status))
    assert result == ProbeResult(False, f"/health answered {status}")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n : x\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"\x1b[31m\xff\xfe\r\n\r\n",
    ],
)
def test_a_malformed_answer_is_not_ready_with_a_reason(raw: bytes) -> None:
    result = ask_ready(Server(raw))
    assert not result.ok
    assert 0 < len(result.detail) < 300
    assert result.detail.isprintable()


def test_a_silent_replica_is_not_ready_when_the_deadline_has_passed() -> None:
    began = time.monotonic()
    result = ask_ready(Server(b"", stay_open=True), deadline=0.2)
    assert result == ProbeResult(False, "no answer from /health within 0.2 s")
    assert time.monotonic() - began < 2


def test_nothing_listening_is_not_ready_and_names_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    result = asyncio.run(probe.ready(address, "/", 1.0))
    assert not result.ok
    assert "nothing listens on 127.0.0.1:" in result.detail


def test_a_path_cannot_smuggle_a_header() -> None:
    received: list[bytes] = []
    ask_ready(Server(b"HTTP/1.1 200 OK\r\n\r\n", received=received), path="/a b\r\nX-Evil: 1?q=1&r=%20")
    assert received[0].split(b"\r\n")[0] == b"GET /a%20b%0D%0AX-Evil:%201?q=1&r=%20 HTTP/1.1"
    assert b"\r\nX-Evil" not in received[0]


def test_a_probe_costs_less_than_half_a_millisecond_of_cpu() -> None:
    async def run() -> float:
        raw = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        program = (
            "import socket\ns=socket.socket();s.bind(('127.0.0.1',0));s.listen(64)\n"
            "print(s.getsockname()[1],flush=True)\n"
            f"while True:\n c,_=s.accept();c.recv(4096);c.sendall({raw!r});c.close()"
        )
        server = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE)
        assert server.stdout is not None
        address = ("127.0.0.1", int(await server.stdout.readline()))
        try:
            await probe.ready(address, "/health", 2.0)
            began = time.process_time()
            for _ in range(200):
                assert (await probe.ready(address, "/health", 2.0)).ok
            return (time.process_time() - began) / 200
        finally:
            server.kill()
            await server.wait()

    assert asyncio.run(run()) < 0.0005


# --- golden ----------------------------------------------------------------------------------------------------


def test_a_golden_request_sends_its_body_and_accepts_the_recorded_Server() -> None:
    received: list[bytes] = []
    recorded = Recorded(body={"data": [1, 2]}, expect={"digit": 5, "p": [0.9]}, tolerance=0.05)
    result = ask_golden(Server(json_answer({"digit": 5, "p": [0.93], "extra": 1}), received=received), recorded)
    assert (result.ok, result.detail) == (True, "")
    assert result.elapsed > 0
    head, _, body = received[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /predict HTTP/1.1\r\n")
    assert json.loads(body) == {"data": [1, 2]}


def test_a_golden_difference_names_the_place_the_values_and_the_tolerance() -> None:
    recorded = Recorded(expect={"outputs": [{"data": [0, 0, 0, 0.91]}]}, tolerance=0.05)
    result = ask_golden(Server(json_answer({"outputs": [{"data": [0, 0, 0, 0.12]}]})), recorded)
    assert not result.ok
    assert result.detail == "golden 'five': outputs[0].data[3] is 0.12, expected 0.91 ± 0.05"


def test_a_golden_request_with_its_own_path_and_status() -> None:
    received: list[bytes] = []
    recorded = Recorded(path="/own", method="GET", status=404)
    assert ask_golden(Server(json_answer({}, "404 Not Found"), received=received), recorded).ok
    assert received[0].startswith(b"GET /own HTTP/1.1\r\n")


def test_another_status_fails_the_golden_request_and_quotes_a_bounded_cleaned_Server() -> None:
    raw = b"HTTP/1.1 500 X\r\n\r\n" + b"\x1b]52;c;evil\x07" + b"x" * 100_000
    result = ask_golden(Server(raw), Recorded(expect={"a": 1}))
    assert not result.ok
    assert result.detail.startswith("golden 'five': /predict answered 500, expected 200; it said '\\x1b]52")
    assert len(result.detail) <= probe.DETAIL_LIMIT
    assert result.detail.isprintable()


def test_chunked_answers_are_put_together() -> None:
    raw = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n{"a":\r\n3\r\n 1}\r\n0\r\n\r\n'
    assert ask_golden(Server(raw, stay_open=True), Recorded(expect={"a": 1})).ok


def test_an_answer_without_length_ends_with_the_connection() -> None:
    assert ask_golden(Server(b'HTTP/1.0 200 OK\r\n\r\n{"a":1}'), Recorded(expect={"a": 1})).ok


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "in the middle of its body"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}", "Content-Length is '-1'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}", "larger than"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n", "a chunk begins with"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFF\r\n", "larger than"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nxx", "transfer coding 'gzip'"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "not JSON: '<html>'"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 60_000, "not JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 200_000, "not JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"9" * 60_000, "not JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe\x00", "not JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (9 << 20), "larger than"),
    ],
)
def test_a_malformed_golden_answer_is_a_difference_in_words(raw: bytes, says: str) -> None:
    result = ask_golden(Server(raw), Recorded(expect={"a": 1}))
    assert not result.ok
    assert says in result.detail
    assert len(result.detail) <= probe.DETAIL_LIMIT


def test_a_golden_request_ends_with_the_shorter_of_the_two_deadlines() -> None:
    began = time.monotonic()
    result = ask_golden(Server(b"", stay_open=True), Recorded(timeout=60), deadline=0.2)
    assert result.detail == "golden 'five': no answer from /predict within 0.2 s"
    result = ask_golden(Server(b"", stay_open=True), Recorded(timeout=0.1), deadline=60)
    assert result.detail == "golden 'five': no answer from /predict within 0.1 s"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("got", "expected", "tolerance", "says"),
    [
        (1.04, 1, 0.05, ""),
        (0.15, 0.1, 0.05, ""),
        (1.06, 1, 0.05, "the answer is 1.06, expected 1 ± 0.05"),
        (2, 2.0, 0.0, ""),
        (NAN, NAN, 0.0, ""),
        (NAN, 1.0, 1e9, "the answer is nan, expected 1.0 ± 1e+09"),
        (1.0, NAN, 1e9, "the answer is 1.0, expected nan ± 1e+09"),
        (float("inf"), float("inf"), 0.0, ""),
        (float("inf"), 1.0, 1e9, "the answer is inf, expected 1.0 ± 1e+09"),
        (10**400, 1.5, 0.1, "the answer is an integer of 1329 bits, expected 1.5 ± 0.1"),
        (True, 1, 1.0, "the answer is true, expected 1 ± 1"),
        (1, True, 0.0, "the answer is 1, expected true"),
        (None, None, 0.0, ""),
        (0, None, 0.0, "the answer is 0, expected null"),
        ("a", "a", 0.0, ""),
        ("a ", "a", 9.0, "the answer is 'a ', expected 'a'"),
        ("1", 1, 9.0, "the answer is '1', expected 1 ± 9"),
        ([1, 2], [1, 2, 3], 9.0, "the answer has 2 items, expected 3"),
        ({"a": 1}, [1], 9.0, "the answer is an object of 1 keys, expected a list of 1"),
        ([1], {"a": 1}, 9.0, "the answer is a list of 1 items, expected an object"),
        ({"b": 1}, {"a": {"c": 1}}, 9.0, "a is missing, expected an object of 1 keys"),
        ({"a": {"b": ["x"]}}, {"a": {"b": ["y"]}}, 9.0, "a.b[0] is 'x', expected 'y'"),
        ({"a": 1, "more": 2}, {"a": 1}, 0.0, ""),
        ("\x1b[31m\u202e" + "x" * 10_000, "y", 0.0, "the answer is '\\x1b[31m\\u202e" + "x" * 64 + "…, expected 'y'"),
    ],
)
def test_json_is_compared_as_the_golden_rules_say(got: object, expected: object, tolerance: float, says: str) -> None:
    assert difference(got, expected, tolerance) == says


def facts_of(server: Server) -> dict[str, str]:
    with server.serve() as address:
        return asyncio.run(probe.facts(address, "/v2", 5.0))


def test_facts_are_taken_as_short_texts_and_nothing_else() -> None:
    said = {"torch": "2.13.0", "threads": 2, "cuda": None, "nested": {"a": 1}, "k" * 41: "v", "long": "x" * 1000}
    found = facts_of(Server(json_answer({"name": "r", "facts": said})))
    assert found.keys() == {"torch", "threads", "long"}
    assert (found["torch"], found["threads"]) == ("2.13.0", "2")
    assert len(found["long"]) <= probe.FACT_LIMIT
    many = facts_of(Server(json_answer({"facts": {f"k{n}": n for n in range(1000)}})))
    assert len(many) == probe.FACTS_LIMIT


@pytest.mark.parametrize(
    "raw",
    [json_answer({"facts": {"torch": "2"}}, "500 Oh"), json_answer([]), json_answer({"facts": 1}), b"nonsense", b""],
)
def test_a_replica_that_tells_no_facts_is_no_trouble(raw: bytes) -> None:
    assert facts_of(Server(raw)) == {}
