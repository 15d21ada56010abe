"""Asks Envoy's admin endpoint over its Unix socket: a tiny HTTP client, one connection a question, a deadline on each.

It reads and reopens logs; it offers no way to stop Envoy or to change its configuration.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

from quarterdeck_agent.errors import GatewayError

_LARGEST_ANSWER = 64 * 1024 * 1024
_PATH_LIMIT = 107  # bytes of a Unix socket's path, unix(7)


class Admin:
    """The admin endpoint behind the socket `path`. Every method raises `GatewayError` when it does not answer."""

    def __init__(self, path: Path, deadline: float = 5.0) -> None:
        if len(bytes(path)) > _PATH_LIMIT:
            raise GatewayError(
                f"the gateway's admin socket would be {path}, longer than the {_PATH_LIMIT} bytes a socket may have",
                hint="choose a data folder with a shorter path",
            )
        self.path = path
        self.deadline = deadline

    async def get(self, target: str) -> bytes:
        """The body of the answer to `GET target`."""
        return await self._ask("GET", target)

    async def reopen_logs(self) -> None:
        """Make Envoy open its log files anew, after they were renamed."""
        await self._ask("POST", "/reopen_logs")

    def server_pid(self) -> int | None:
        """The process that listens on the socket, as the kernel tells (SO_PEERCRED, unix(7)); `None` if nobody does."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(0.2)  # a connect waits only if Envoy has not accepted anything for long
            try:
                connection.connect(str(self.path))
                raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            except OSError:
                return None
        pid: int = struct.unpack("3i", raw)[0]
        return pid

    async def _ask(self, method: str, target: str) -> bytes:
        try:
            async with asyncio.timeout(self.deadline):
                return await self._exchange(method, target)
        except TimeoutError:
            detail = f"the gateway's admin socket {self.path} did not answer {target} in {self.deadline:g} s"
            raise GatewayError(detail, hint="look into envoy.log beside it") from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError) as error:
            raise GatewayError(f"the gateway's admin socket {self.path} cannot be asked: {error}") from error

    async def _exchange(self, method: str, target: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        try:
            request = f"{method} {target} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
            writer.write(request.encode("ascii"))
            status, headers = await _read_head(reader)
            body = await _read_body(reader, headers)
        finally:
            writer.transport.abort()
        if status != 200:
            raise GatewayError(f"the gateway's admin endpoint answered {status} to {target}: {body[:200]!r}")
        return body


async def _read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {}
    for line in lines[1:]:
        key, _, value = line.partition(":")
        headers[key.strip().lower()] = value.strip()
    return int(lines[0].split(" ", 2)[1]), headers


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(_bounded(int(headers.get("content-length", "0"))))
    chunks, total = [], 0
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        total = _bounded(total + size)
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)
    return b"".join(chunks)


def _bounded(size: int) -> int:
    if not 0 <= size <= _LARGEST_ANSWER:
        raise ValueError(f"an answer of {size} bytes")
    return size
