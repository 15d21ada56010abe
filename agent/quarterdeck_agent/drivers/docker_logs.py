"""Copies what containers print from Docker's log stream into the replicas' own log files, one thread a container.

It speaks the Engine API over a socket of its own, because a follower must be interruptible in the middle of a read.
Nothing is missed or repeated over a restart of the agent: a reader goes on from what the files already hold. Where a
container prints faster than can be kept, the oldest is left out and a marker says so; no container waits for us.
"""

from __future__ import annotations

import http.client
import json
import logging
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from quarterdeck_agent.drivers.base import Found, Life
from quarterdeck_agent.drivers.docker_socket import dialer
from quarterdeck_agent.drivers.logfile import FILE_COUNT, FILE_SIZE, LogFile
from quarterdeck_agent.tape import STAMP, Owner, Tape

log = logging.getLogger(__name__)

CLOSE_DEADLINE = 5.0
BACKOFF = (0.2, 10.0)
"""Seconds between two attempts, doubled from the first to the last."""

OVERLAP = timedelta(seconds=0.1)
"""Read again at resumption: stdout and stderr are stamped apart, so a line may lie behind one that is newer."""

SHARE = 0.25
"""Of a core, for one container that floods."""

FLOOD = 64 << 20
LATE = 30.0
"""After `FLOOD` bytes in one go and still `LATE` seconds behind, what lies between is left out."""

FRAME_LIMIT = 1 << 20
STREAMS = {1: "o", 2: "e"}
FolderOf = Callable[[Found], Path]


class DockerLogCollector:
    """Keeps one reader per container of this agent. `folder_of` names a replica's log folder."""

    def __init__(
        self, base_url: str, folder_of: FolderOf, *, file_size: int = FILE_SIZE, file_count: int = FILE_COUNT
    ) -> None:
        self._dial = dialer(base_url)
        self._folder_of = folder_of
        self._size, self._count = file_size, file_count
        self._readers: dict[str, _Reader] = {}

    def update(self, replicas: Iterable[Found]) -> None:
        """Take over the engine's latest inventory: begin with new containers, finish ended ones. Never blocks."""
        now = {found.handle: found for found in replicas if found.life is not Life.CREATED}
        for handle in [handle for handle in self._readers if handle not in now]:
            self._readers.pop(handle).stop()
        for handle, found in now.items():
            reader = self._readers.get(handle)
            if reader is None:
                reader = self._readers[handle] = self._start(found)
            if found.life is Life.EXITED:
                reader.finish()

    def drained(self, handle: str, deadline: float) -> bool:
        """Wait up to `deadline` seconds until an ended container's last line is on disk. Blocking."""
        reader = self._readers.get(handle)
        return reader is None or reader.done.wait(deadline)

    def close(self) -> None:
        """Stop reading and wait for the threads; what comes later is read by the next agent."""
        for reader in self._readers.values():
            reader.stop()
        for reader in self._readers.values():
            reader.join(CLOSE_DEADLINE)
        self._readers.clear()

    def _start(self, found: Found) -> _Reader:
        folder = self._folder_of(found)
        folder.mkdir(parents=True, exist_ok=True)
        owner = Owner(found.deployment, found.revision, found.id)
        reader = _Reader(
            self._dial, found.handle, Tape(folder, owner), LogFile(folder, size=self._size, count=self._count)
        )
        reader.start()
        return reader


class _Pace:
    """Tells how long to pause so that this thread uses no more than `SHARE` of a core."""

    def __init__(self) -> None:
        self._bytes, self._cpu, self._wall = 0, time.thread_time(), time.monotonic()

    def pause(self, size: int) -> float:
        self._bytes += size
        if self._bytes < 64 * 1024:
            return 0.0
        cpu, wall = time.thread_time(), time.monotonic()
        pause = (cpu - self._cpu) / SHARE - (wall - self._wall)
        self._bytes, self._cpu, self._wall = 0, cpu, wall + max(0.0, pause)
        return pause


class _GoneError(Exception):
    """Docker no longer knows the container."""


class _Reader(threading.Thread):
    """Reads one container until it has ended and all was read, or until told to stop."""

    def __init__(self, dial: Callable[[], socket.socket], container: str, tape: Tape, file: LogFile) -> None:
        super().__init__(name=f"logs-{container[:12]}", daemon=True)
        self.ended = threading.Event()
        self.done = threading.Event()
        self._dial, self._container, self._tape, self._file = dial, container, tape, file
        self._told = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._skip_to: datetime | None = None

    def stop(self) -> None:
        self._told.set()
        self._interrupt()

    def finish(self) -> None:
        """The container has ended: read what is left without following, and end."""
        if not self.ended.is_set():
            self.ended.set()
            # Docker 20.10 may leave a follower of an ended container waiting for ever.
            self._interrupt()

    def _interrupt(self) -> None:
        with self._lock:
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    log.debug("log stream of %s had closed already", self._container[:12])

    def run(self) -> None:
        pause = BACKOFF[0]
        try:
            while not self._told.is_set():
                ended = self.ended.is_set()
                try:
                    read, whole = self._read(follow=not ended), True
                except _GoneError:
                    return
                except (OSError, http.client.HTTPException) as error:
                    log.debug("log stream of %s: %r", self._container[:12], error)
                    read, whole = 0, False
                if ended and whole and self._skip_to is None:
                    return
                pause = BACKOFF[0] if read else min(pause * 2, BACKOFF[1])
                self._wait(0.0 if self._skip_to else pause, until_ended=not ended)
        finally:
            self._file.close()
            self.done.set()

    def _wait(self, seconds: float, *, until_ended: bool) -> None:
        """Pause before the next attempt; a container that ends meanwhile is read once more at once."""
        until = time.monotonic() + seconds
        while not self._told.is_set() and time.monotonic() < until:
            if until_ended and self.ended.is_set():
                return
            self._told.wait(0.1)

    def _read(self, *, follow: bool) -> int:
        """One connection until the stream ends; returns the bytes that came. Raises `_GoneError`, OSError."""
        since, known = self._resume()
        try:
            with self._open(since, follow=follow) as stream:
                return self._copy(stream, known)
        finally:
            self._forget()

    def _forget(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _resume(self) -> tuple[datetime | None, Counter[tuple[bytes, str]]]:
        """Where to go on, and how often each time and stream from there on is on disk already."""
        known: Counter[tuple[bytes, str]] = Counter()
        since, self._skip_to = self._skip_to, None
        if since is not None:
            return since, known
        for entry in self._tape.backwards():
            line = self._tape.parse(entry.raw)
            if line.stream == "agent":
                continue
            since = line.at - OVERLAP if since is None else since
            if line.at < since:
                break
            known[entry.raw[:STAMP], entry.raw[STAMP + 1 : STAMP + 2].decode()] += 1
        return since, known

    def _open(self, since: datetime | None, *, follow: bool) -> http.client.HTTPResponse:
        query = f"follow={int(follow)}&stdout=1&stderr=1&timestamps=1"
        if since is not None:
            query += f"&since={int(since.timestamp())}.{since.microsecond:06d}000"
        sock = self._dial()
        with self._lock:
            self._socket = sock
            # Whoever told us before there was a socket to shut down is heard here.
            go_on = not self._told.is_set() and not (follow and self.ended.is_set())
        if not go_on:
            raise ConnectionAbortedError("told to stop or finish")
        sock.sendall(
            f"GET /containers/{quote(self._container, safe='')}/logs?{query} HTTP/1.1\r\n"
            "Host: docker\r\nConnection: close\r\n\r\n".encode()
        )
        response = http.client.HTTPResponse(sock, method="GET")
        try:
            response.begin()
            sock.settimeout(None)  # a silent container is no error; `stop` shuts the socket down
            if response.status == 200:
                return response
            said = response.read(FRAME_LIMIT)
        except BaseException:
            response.close()
            raise
        response.close()
        if response.status in (404, 409):
            raise _GoneError
        raise OSError(f"Docker answered {response.status}: {_message(said)}")

    def _copy(self, stream: http.client.HTTPResponse, known: Counter[tuple[bytes, str]]) -> int:
        buffer, total, pace = b"", 0, _Pace()
        while piece := stream.read1(64 * 1024):
            buffer += piece
            total += len(piece)
            buffer, at = self._write(buffer, known)
            if total > FLOOD and at is not None and self._late(at):
                break
            # Somebody waits for the last words of a container that has ended.
            if (pause := pace.pause(len(piece))) > 0 and not self.ended.is_set():
                self._told.wait(pause)
        return total

    def _late(self, at: datetime) -> bool:
        now = datetime.now(UTC)
        behind = (now - at).total_seconds()
        if behind < LATE:
            return False
        self._file.write("a", b"dropped %.0f s of output: written faster than it can be kept\n" % behind)
        self._skip_to = now
        return True

    def _write(self, buffer: bytes, known: Counter[tuple[bytes, str]]) -> tuple[bytes, datetime | None]:
        """Write the whole frames in `buffer`; returns the rest and the time of the last line.

        A frame is one byte of stream, three of nothing, four of size (docs.docker.com, Engine API, attach), and holds
        one message: its time, a space, and its text, without a newline where Docker has cut a long line.
        """
        place = 0
        at: datetime | None = None
        while len(buffer) - place >= 8:
            kind, size = struct.unpack_from("!BxxxI", buffer, place)
            if size > FRAME_LIMIT:
                raise OSError(f"Docker sent a frame of {size} bytes")
            if len(buffer) - place - 8 < size:
                break
            at = self._message(STREAMS.get(kind, "o"), buffer[place + 8 : place + 8 + size], known) or at
            place += 8 + size
        return buffer[place:], at

    def _message(self, stream: str, message: bytes, known: Counter[tuple[bytes, str]]) -> datetime | None:
        stamp, _, text = message.partition(b" ")
        try:
            at = datetime.fromisoformat(stamp[: STAMP - 1].decode("ascii")).replace(tzinfo=UTC)
        except ValueError:
            self._file.write(stream, message.rstrip(b"\n") + b"\n")
            return None
        key = (stamp[: STAMP - 1] + b"Z", stream)
        if known:
            if known[key] > 0:
                known[key] -= 1
                return at
            known = +known
        # A float of today's seconds is exact to 0.24 µs: the nudge keeps it inside its own microsecond.
        self._file.write(stream, text.rstrip(b"\n") + b"\n", at.timestamp() + 3e-7)
        return at


def _message(said: bytes) -> str:
    try:
        return str(json.loads(said)["message"])[:200]
    except (ValueError, KeyError, TypeError):
        return repr(said[:200])
