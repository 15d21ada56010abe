"""Asks a replica over HTTP/1.1: is it ready, and does it answer a golden request as its author recorded.

A replica is not trusted: every read is bounded in bytes and time, and an answer that is malformed, cut or too large is
an ordinary "no" with its reason. It never raises for what a replica does and never decides what follows from it.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

Address = tuple[str, int]

HEAD_LIMIT = 16 * 1024
BODY_LIMIT = 8 * 1024 * 1024
DETAIL_LIMIT = 400
EXCERPT_LIMIT = 80
FACTS_LIMIT = 32
FACT_NAME = 40
FACT_LIMIT = 200
PARSE_INLINE = 64 * 1024
"""A JSON body up to this size is parsed on the loop (well under 1 ms), a larger one in a thread."""


class Golden(Protocol):
    """What a golden request says: `bundle.Golden` as the probe sees it. `timeout` in seconds, `tolerance` absolute."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str | None: ...
    @property
    def method(self) -> str: ...
    @property
    def body(self) -> object: ...
    @property
    def expect(self) -> object: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def status(self) -> int: ...
    @property
    def timeout(self) -> float: ...


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Whether the replica said that it is ready; `detail` is the reason where it is not."""

    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """Whether the answer was the recorded one; `detail` names the first difference, `elapsed` is in seconds."""

    ok: bool
    detail: str
    elapsed: float


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes


class _MalformedError(Exception):
    """The replica's answer is not HTTP/1.1 as RFC 9112 has it, or larger than we read."""


async def ready(address: Address, path: str, deadline: float) -> ProbeResult:
    """Ask `GET path`, ready being any 2xx within `deadline` seconds. Reads the head of the answer and no more."""
    request = _request("GET", address, path, None)
    try:
        async with asyncio.timeout(deadline):
            with _socket(address) as sock:
                head, _ = await _exchange(sock, address, request)
        status, _ = _parse_head(head)
    except TimeoutError:
        return ProbeResult(False, f"no answer from {path} within {deadline:g} s")
    except ConnectionRefusedError:
        return ProbeResult(False, f"nothing listens on {_place(address)}")
    except OSError as error:
        return ProbeResult(False, f"cannot reach {_place(address)}: {error.strerror or error}")
    except _MalformedError as error:
        return ProbeResult(False, f"{path} did not answer HTTP: {error}")
    if 200 <= status < 300:
        return ProbeResult(True)
    return ProbeResult(False, f"{path} answered {status}")


async def golden(address: Address, golden: Golden, default_path: str, deadline: float) -> GoldenResult:
    """Send one golden request, compare status and JSON; `deadline` seconds bound it as well as its own timeout."""
    began = time.perf_counter()
    limit = min(deadline, golden.timeout)
    detail = await _golden_difference(address, golden, golden.path or default_path, limit)
    elapsed = time.perf_counter() - began
    return GoldenResult(not detail, _cut(f"golden {golden.name!r}: {detail}", DETAIL_LIMIT) if detail else "", elapsed)


async def facts(address: Address, path: str, deadline: float) -> dict[str, str]:
    """What a replica says that it runs on: the `facts` of the object at `path`, cut to a bounded size.

    Empty where it does not answer within `deadline` seconds, or says no such thing: nothing depends on it.
    """
    try:
        async with asyncio.timeout(deadline):
            answer = await _call(address, _request("GET", address, path, None), "GET")
        said = json.loads(answer.body[:PARSE_INLINE]) if answer.status == 200 else None
    except (TimeoutError, OSError, ValueError, RecursionError, _MalformedError):
        return {}
    found = said.get("facts") if isinstance(said, dict) else None
    pairs = found.items() if isinstance(found, dict) else ()
    told = [(key, value) for key, value in pairs if isinstance(value, str | int | float) and len(key) <= FACT_NAME]
    return {key: _cut(str(value), FACT_LIMIT) for key, value in told[:FACTS_LIMIT]}


async def _golden_difference(address: Address, golden: Golden, path: str, limit: float) -> str:
    """The first thing that is not as recorded, in words; empty when all is well."""
    body = None if golden.body is None else json.dumps(golden.body).encode()
    try:
        async with asyncio.timeout(limit):
            answer = await _call(address, _request(golden.method, address, path, body), golden.method)
    except TimeoutError:
        return f"no answer from {path} within {limit:g} s"
    except OSError as error:
        return f"cannot reach {_place(address)}: {error.strerror or error}"
    except _MalformedError as error:
        return f"{path} did not answer HTTP: {error}"
    if answer.status != golden.status:
        return f"{path} answered {answer.status}, expected {golden.status}; it said {_excerpt(answer.body)}"
    if golden.expect is None:
        return ""
    return await _body_difference(answer.body, golden)


async def _body_difference(body: bytes, golden: Golden) -> str:
    def work() -> str:
        try:
            value = json.loads(body)
            return difference(value, golden.expect, golden.tolerance)
        except (ValueError, RecursionError):
            return f"the answer is not JSON: {_excerpt(body)}"

    return work() if len(body) <= PARSE_INLINE else await asyncio.to_thread(work)


# --- comparing -------------------------------------------------------------------------------------------------


def difference(answer: object, expected: object, tolerance: float, where: str = "") -> str:
    """The first difference between two JSON values in words, or "".

    Numbers may differ by `tolerance`; NaN equals only NaN, an infinity only itself. Booleans, strings and null are
    exact. Lists must have the same length; an object in the answer may hold more keys than expected.
    """
    if isinstance(expected, dict):
        return _object_difference(answer, expected, tolerance, where)
    if isinstance(expected, list | tuple):
        return _list_difference(answer, expected, tolerance, where)
    if _is_number(expected) and _is_number(answer):
        same = _near(answer, expected, tolerance)
    else:
        same = type(answer) is type(expected) and answer == expected
    if same:
        return ""
    margin = f" ± {tolerance:g}" if _is_number(expected) and tolerance else ""
    return f"{where or 'the answer'} is {_show(answer)}, expected {_show(expected)}{margin}"


def _object_difference(answer: object, expected: dict[str, object], tolerance: float, where: str) -> str:
    if not isinstance(answer, dict):
        return f"{where or 'the answer'} is {_show(answer)}, expected an object"
    for key, value in expected.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in answer:
            return f"{place} is missing, expected {_show(value)}"
        if found := difference(answer[key], value, tolerance, place):
            return found
    return ""


def _list_difference(answer: object, expected: list[object] | tuple[object, ...], tolerance: float, where: str) -> str:
    if not isinstance(answer, list):
        return f"{where or 'the answer'} is {_show(answer)}, expected a list of {len(expected)}"
    if len(answer) != len(expected):
        return f"{where or 'the answer'} has {len(answer)} items, expected {len(expected)}"
    for index, (mine, theirs) in enumerate(zip(answer, expected, strict=True)):
        if found := difference(mine, theirs, tolerance, f"{where}[{index}]"):
            return found
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _near(answer: object, expected: object, tolerance: float) -> bool:
    assert isinstance(answer, int | float) and isinstance(expected, int | float)
    if answer == expected:
        return True
    try:
        if math.isnan(expected) or math.isnan(answer):
            return math.isnan(expected) and math.isnan(answer)
        if math.isinf(expected) or math.isinf(answer):
            return False
        gap = abs(answer - expected)
        # 0.15 - 0.1 is a hair above 0.05 in binary: a difference of exactly the tolerance counts as within it.
        return gap <= tolerance or math.isclose(gap, tolerance, rel_tol=1e-9)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _show(value: object) -> str:
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} items"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    # repr escapes control bytes and unprintable characters: a model's text must not reach a terminal as it is.
    return _cut(repr(value[:EXCERPT_LIMIT] if isinstance(value, str) else value), EXCERPT_LIMIT)


def _excerpt(body: bytes) -> str:
    return _cut(repr(body[:EXCERPT_LIMIT].decode("utf-8", "replace")), EXCERPT_LIMIT + 20) if body else "nothing"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


# --- HTTP/1.1 --------------------------------------------------------------------------------------------------


def _place(address: Address) -> str:
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


def _request(method: str, address: Address, path: str, body: bytes | None) -> bytes:
    # Quoting leaves no space or line break in the target, so a path cannot smuggle a header in.
    target = quote(path if path.startswith("/") else "/" + path, safe="/?#[]@!$&'()*+,;=:%~-._")
    verb = method if method.isalpha() and method.isascii() else "GET"
    head = f"{verb} {target} HTTP/1.1\r\nHost: {_place(address)}\r\nUser-Agent: quarterdeck-probe\r\n"
    head += "Accept: application/json, */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode("ascii") + b"\r\n" + (body or b"")


def _socket(address: Address) -> socket.socket:
    # Bare sockets on the loop: streams and transports would double the CPU a probe costs.
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    sock.setblocking(False)
    return sock


async def _exchange(sock: socket.socket, address: Address, request: bytes) -> tuple[bytes, bytes]:
    """Send, and read the head of the answer; returns it and what came of the body with it."""
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, address)
    await loop.sock_sendall(sock, request)
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > HEAD_LIMIT:
            raise _MalformedError(f"its head is longer than {HEAD_LIMIT} bytes")
        piece = await loop.sock_recv(sock, 16 * 1024)
        if not piece:
            raise _MalformedError(
                "it closed the connection before its head was whole" if data else "it closed without answer"
            )
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    if not 100 <= _status(head) < 200:
        return head, rest
    raise _MalformedError(f"it sent the interim status {_status(head)} that nobody asked for")


def _status(head: bytes) -> int:
    line = head.split(b"\r\n", 1)[0]
    protocol, word, after = line[:9], line[9:12], line[12:13]
    three_digits = len(word) == 3 and word.isdigit() and after in (b"", b" ")
    if protocol not in (b"HTTP/1.1 ", b"HTTP/1.0 ") or not three_digits:
        raise _MalformedError(f"its first line is {_excerpt(line)}")
    return int(word)


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    headers: dict[str, str] = {}
    for line in head.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise _MalformedError(f"a header line is {_excerpt(line)}")
        headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
    return _status(head), headers


async def _call(address: Address, request: bytes, method: str) -> _Answer:
    with _socket(address) as sock:
        head, rest = await _exchange(sock, address, request)
        status, headers = _parse_head(head)
        if method == "HEAD" or status in (204, 304):
            return _Answer(status, b"")
        body = await _read_body(sock, headers, bytearray(rest))
        return _Answer(status, body)


async def _read_body(sock: socket.socket, headers: dict[str, str], data: bytearray) -> bytes:
    """The body by RFC 9112, section 6.3: chunked, by length, or until the connection closes."""
    coding = headers.get("transfer-encoding", "").lower()
    if coding == "chunked":
        chunks = _Chunks()
        await _read_until(sock, data, lambda: chunks.feed(data))
        return bytes(chunks.body)
    if coding:
        raise _MalformedError(f"it used the transfer coding {_show(coding)}")
    length = headers.get("content-length")
    if length is None:
        await _read_until(sock, data, lambda: False, close_ends=True)
        return bytes(data)
    if not length.isdigit() or not length.isascii() or len(length) > 15:
        raise _MalformedError(f"its Content-Length is {_show(length)}")
    wanted = int(length)
    if wanted > BODY_LIMIT:
        raise _MalformedError(f"its body is larger than {BODY_LIMIT} bytes")
    await _read_until(sock, data, lambda: len(data) >= wanted)
    return bytes(data[:wanted])


async def _read_until(
    sock: socket.socket, data: bytearray, whole: Callable[[], bool], *, close_ends: bool = False
) -> None:
    loop = asyncio.get_running_loop()
    while not whole():
        if len(data) > 2 * BODY_LIMIT or (close_ends and len(data) > BODY_LIMIT):
            raise _MalformedError(f"its body is larger than {BODY_LIMIT} bytes")
        piece = await loop.sock_recv(sock, 256 * 1024)
        if not piece:
            if close_ends:
                return
            raise _MalformedError("it closed the connection in the middle of its body")
        data += piece
        await asyncio.sleep(0)  # sock_recv does not yield while bytes are there, and the loop has others to serve


class _Chunks:
    """Takes a chunked body apart as it grows (RFC 9112, section 7.1); `feed` tells whether it is whole."""

    def __init__(self) -> None:
        self.body = bytearray()
        self._place = 0

    def feed(self, data: bytearray) -> bool:
        while (end := data.find(b"\r\n", self._place, self._place + 1024)) >= 0:
            word = bytes(data[self._place : end]).split(b";", 1)[0].strip()
            try:
                size = int(word, 16) if word.isalnum() and len(word) <= 8 else -1
            except ValueError:
                size = -1
            if size < 0:
                raise _MalformedError(f"a chunk begins with {_excerpt(word)}")
            if size == 0:
                return True
            if len(self.body) + size > BODY_LIMIT:
                raise _MalformedError(f"its body is larger than {BODY_LIMIT} bytes")
            if len(data) < end + 2 + size + 2:
                return False
            self.body += data[end + 2 : end + 2 + size]
            self._place = end + 2 + size + 2
        if len(data) - self._place > 1024:
            raise _MalformedError("a chunk has no size")
        return False
