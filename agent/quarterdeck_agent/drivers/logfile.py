"""The one writer of replicas' logs: size-capped, rotated files of timestamped lines; it never raises for a full disk.

Standard library only and no import of the package: the shim loads this file by its path with `python -I -S`.
A line is `<RFC 3339 UTC, microseconds>Z <o|e|a> <text>`, where o is stdout, e is stderr and a is the agent's own word.
"""

# pathlib would double the start of every shim.
# ruff: noqa: PTH104, PTH108, PTH110, PTH116, PTH118

from __future__ import annotations

import os
import time
from collections.abc import Callable

LINE_LIMIT = 16 * 1024
FILE_SIZE = 10 * 1024 * 1024
FILE_COUNT = 10
CURRENT = "current.log"


def stamp(seconds: float) -> str:
    """Wall time in seconds since the epoch as RFC 3339 in UTC with microseconds."""
    whole, micro = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{micro:06d}Z"


class Lines:
    """Cuts a stream of bytes into whole lines; a line longer than `limit` bytes becomes several."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, chunk: bytes) -> bytes:
        """The lines that are whole now, each with its newline."""
        data = self._rest + chunk
        end = data.rfind(b"\n") + 1
        whole, self._rest = data[:end], data[end:]
        if len(self._rest) > self._limit:
            pieces = self._cut(self._rest)
            self._rest = pieces.pop()
            whole += b"".join(piece + b"\n" for piece in pieces)
        return whole if max(map(len, whole.split(b"\n"))) <= self._limit else self._split(whole)

    def rest(self) -> bytes:
        """The last line, where the stream ended without a newline."""
        rest, self._rest = self._rest, b""
        return rest + b"\n" if rest else b""

    def _split(self, whole: bytes) -> bytes:
        return b"".join(piece + b"\n" for line in whole[:-1].split(b"\n") for piece in self._cut(line))

    def _cut(self, line: bytes) -> list[bytes]:
        pieces = []
        while len(line) > self._limit:
            cut = self._limit
            # Never through a UTF-8 sequence: its parts would each be invalid.
            while cut > self._limit - 4 and line[cut] & 0xC0 == 0x80:
                cut -= 1
            pieces.append(line[:cut])
            line = line[cut:]
        return [*pieces, line]


class LogFile:
    """Appends lines to `folder/current.log`; at `size` bytes it becomes `1.log`, and so on up to `count` files.

    A write that the disk refuses is dropped and counted; the next one that succeeds is preceded by a marker line.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        size: int = FILE_SIZE,
        count: int = FILE_COUNT,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._folder = os.fspath(folder)
        self._cap, self._count, self._now = size, max(count, 1), now
        self._descriptor: int | None = None
        self._size = 0
        self._untold = 0
        self.dropped = 0

    def write(self, stream: str, lines: bytes, at: float | None = None) -> None:
        """Append whole lines (newline-terminated, as `Lines` gives them) with one timestamp, default now."""
        if not lines:
            return
        try:
            self._open()
            if self._untold:
                self._append(self._format("a", b"dropped %d bytes: the disk refused them\n" % self._untold, at))
                self._untold = 0
            self._append(self._format(stream, lines, at))
        except OSError:
            self.dropped += len(lines)
            self._untold += len(lines)

    def close(self) -> None:
        """Let go of the file; the next write opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _format(self, stream: str, lines: bytes, at: float | None) -> bytes:
        head = f"{stamp(self._now() if at is None else at)} {stream} ".encode()
        text = lines.replace(b"\r\n", b"\n")
        text = text[:-1] if text.endswith(b"\n") else text
        try:
            text.decode()
        except UnicodeDecodeError:
            text = text.decode(errors="backslashreplace").encode()
        return head + text.replace(b"\n", b"\n" + head) + b"\n"

    def _open(self) -> None:
        if self._descriptor is not None:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(os.path.join(self._folder, CURRENT), flags, 0o640)
        self._size = os.fstat(self._descriptor).st_size
        if self._size and not self._ends_whole():
            # A writer before us was killed in the middle of a line.
            self._put(b"\n")

    def _ends_whole(self) -> bool:
        descriptor = os.open(os.path.join(self._folder, CURRENT), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, 1, self._size - 1) == b"\n"
        finally:
            os.close(descriptor)

    def _append(self, data: bytes) -> None:
        while data:
            room = self._cap - self._size
            end = len(data) if len(data) <= room else data.rfind(b"\n", 0, max(room, 0)) + 1
            if end == 0 and self._size:
                self._rotate()
                continue
            # One line larger than a whole file still goes in whole.
            end = end or data.index(b"\n") + 1
            self._put(data[:end])
            data = data[end:]

    def _put(self, data: bytes) -> None:
        assert self._descriptor is not None
        written = 0
        try:
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
        except OSError:
            if written:
                # Half a line would glue itself to the next one.
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += written

    def _rotate(self) -> None:
        self.close()
        path = [os.path.join(self._folder, name) for name in self._names()]
        lost = 0
        if os.path.exists(path[-1]):
            lost = os.stat(path[-1]).st_size
            os.unlink(path[-1])
        for older, newer in zip(reversed(path), reversed(path[:-1]), strict=False):
            if os.path.exists(newer):
                os.rename(newer, older)
        self._open()
        if lost:
            self._put(self._format("a", b"dropped %d bytes: log cap reached\n" % lost, None))

    def _names(self) -> list[str]:
        return [CURRENT, *(f"{number}.log" for number in range(1, self._count))]
