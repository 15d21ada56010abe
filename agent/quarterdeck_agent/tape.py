"""One replica's rotated log files read as one long tape, forwards, backwards or from a time on.

The writer (`drivers/logfile.py`) may rotate at any moment and is never waited for: a place on the tape is the
identity of a file and an offset in it, so it survives renames, and no descriptor is held between two reads. Never
follows a symbolic link and never reads what is not a regular file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from quarterdeck_agent.protocol import LogLine

CURRENT = "current.log"
OLDER = 99
"""The highest number of a rotated file that is looked for."""

STAMP = len("2026-01-01T00:00:00.000000Z")
CHUNK = 128 * 1024
"""Read at once. Above the longest line: 16 KiB of text, up to four times that when escaped."""

STREAMS: dict[str, Literal["stdout", "stderr", "agent"]] = {"o": "stdout", "e": "stderr", "a": "agent"}
START = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose tape it is."""

    deployment: str
    revision: int
    replica: str

    def line(self, at: datetime, text: str, dropped: int = 0) -> LogLine:
        """A marker of the agent's own on this tape."""
        return LogLine(at, self.deployment, self.revision, self.replica, "agent", text, dropped)


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the tape. `head` is its first timestamp: with the inode it names the file across renames."""

    name: str
    inode: int
    head: bytes
    size: int
    modified: float


@dataclass(frozen=True, slots=True)
class Place:
    """A place on the tape: before byte `offset` of the file with this inode and head."""

    inode: int
    head: bytes
    offset: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line and the place where it begins."""

    raw: bytes
    place: Place


@dataclass(frozen=True, slots=True)
class Piece:
    """What one read gave: whole lines; `lost` when rotation took what came before them, `end` when there is no more."""

    lines: tuple[bytes, ...] = ()
    lost: bool = False
    end: bool = False


class Tape:
    """Reads one replica's folder. Every method is quick, blocking and for one thread at a time."""

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.owner = owner
        self.place: Place | None = None
        self._folder = str(folder)
        self._last = START

    # --- the files ---------------------------------------------------------------------------------------------

    def parts(self) -> list[Part]:
        """The files, oldest first.

        Looked at from newest to oldest: rotation renames in that direction too, so a file may be met twice but never
        missed.
        """
        found: dict[tuple[int, bytes], Part] = {}
        for name in self._names():
            if (part := self._look(name)) is not None:
                found.setdefault((part.inode, part.head), part)
        return list(reversed(found.values()))

    def _names(self) -> list[str]:
        try:
            there = set(os.listdir(self._folder))  # noqa: PTH208 - names only, and often
        except OSError:
            return []
        older = sorted(int(name[:-4]) for name in there if name.endswith(".log") and name[:-4].isdecimal())
        return [CURRENT, *(f"{number}.log" for number in older if number <= OLDER)]

    def _look(self, name: str) -> Part | None:
        descriptor = self._open(name)
        if descriptor is None:
            return None
        try:
            facts = os.fstat(descriptor)
            head = os.pread(descriptor, STAMP, 0)
        finally:
            os.close(descriptor)
        if len(head) < STAMP:
            return None
        return Part(name, facts.st_ino, head, facts.st_size, facts.st_mtime)

    def _open(self, name: str) -> int | None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(f"{self._folder}/{name}", flags)
        except OSError:
            return None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return None

    def _read(self, part: Part, size: int, offset: int) -> bytes | None:
        """Bytes of that very file, under whatever name it has by now; `None` when rotation has dropped it."""
        for name in (part.name, *self._names()):
            descriptor = self._open(name)
            if descriptor is None:
                continue
            try:
                same = os.fstat(descriptor).st_ino == part.inode and os.pread(descriptor, STAMP, 0) == part.head
                if same:
                    return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)
        return None

    # --- forwards ----------------------------------------------------------------------------------------------

    def read(self, size: int = CHUNK) -> Piece:
        """The next whole lines from `place` on, which moves behind them."""
        parts = self.parts()
        if not parts:
            return Piece(end=True)
        index, lost = self._index(parts)
        offset = self.place.offset if self.place is not None and not lost else 0
        if offset >= parts[index].size and index + 1 < len(parts):
            index, offset = index + 1, 0
        part, newest = parts[index], index + 1 == len(parts)
        data = self._read(part, size, offset)
        if data is None:
            return Piece(lost=lost)
        cut = data.rfind(b"\n") + 1
        if cut == 0 and (len(data) == size or not newest):
            cut = len(data)  # not in our format, or cut by a crash: taken as it is rather than waited for
        self.place = Place(part.inode, part.head, offset + cut)
        return Piece(tuple(data[:cut].split(b"\n")[:-1] if cut else ()), lost, end=newest and cut == 0)

    def _index(self, parts: list[Part]) -> tuple[int, bool]:
        if self.place is None:
            return 0, False
        for index, part in enumerate(parts):
            if (part.inode, part.head) == (self.place.inode, self.place.head):
                return index, False
        return 0, True

    def behind(self) -> int:
        """Bytes between `place` and the end."""
        parts = self.parts()
        if not parts:
            return 0
        index, lost = self._index(parts)
        passed = self.place.offset if self.place is not None and not lost else 0
        return sum(part.size for part in parts[index:]) - passed

    def skip(self, keep: int) -> int:
        """Move on until about `keep` bytes before the end; returns the number of lines passed over."""
        parts = self.parts()
        if not parts:
            return 0
        index, lost = self._index(parts)
        offset = self.place.offset if self.place is not None and not lost else 0
        newest, passed = parts[-1], 0
        for part in parts[index:-1]:
            passed += self._count(part, offset, part.size)
            offset = 0
        target = max(offset, newest.size - keep)
        tail = self._read(newest, CHUNK, target) or b""
        # From the middle of a line on to the next one; the line itself counts as passed over.
        target += tail.find(b"\n") + 1 if target > offset else 0
        self.place = Place(newest.inode, newest.head, target)
        return passed + self._count(newest, offset, target)

    def _count(self, part: Part, start: int, end: int) -> int:
        lines = 0
        while start < end:
            data = self._read(part, min(1 << 20, end - start), start)
            if not data:
                break
            lines += data.count(b"\n")
            start += len(data)
        return lines

    # --- backwards and by time ---------------------------------------------------------------------------------

    def backwards(self) -> Iterator[Entry]:
        """Every line from the newest to the oldest."""
        parts = self.parts()
        for part in reversed(parts):
            yield from self._part_backwards(part, whole=part is not parts[-1])

    def _part_backwards(self, part: Part, *, whole: bool) -> Iterator[Entry]:
        end, rest = part.size, b""
        while end > 0:
            start = max(0, end - CHUNK)
            data = self._read(part, end - start, start)
            if data is None:
                return
            data += rest
            if not whole:  # the writer may be in the middle of the newest line
                data, whole = data[: data.rfind(b"\n") + 1], True
            first = data.find(b"\n") + 1 if start else 0
            if start and not first:
                rest, end = data, start
                continue
            offset = start + len(data)
            for line in reversed(_split(data[first:])):
                offset -= len(line)
                yield Entry(line.rstrip(b"\n"), Place(part.inode, part.head, offset))
            rest, end = data[:first], start

    def to_end(self) -> None:
        """Move behind the last line there is."""
        newest = next(self.backwards(), None)
        if newest is not None:
            place = newest.place
            self.place = Place(place.inode, place.head, place.offset + len(newest.raw) + 1)

    def seek(self, since: datetime) -> None:
        """Move before the first line that may be at `since` or later (exact where times do not run backwards)."""
        stamp = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").encode()
        parts = self.parts()
        for part in parts:
            if part is parts[-1] or part.modified >= since.timestamp():
                self.place = Place(part.inode, part.head, self._search(part, stamp))
                return

    def _search(self, part: Part, stamp: bytes) -> int:
        low, high = 0, part.size  # lines that begin before `low` are older than `stamp`
        while high - low > CHUNK:
            middle = (low + high) // 2
            data = self._read(part, CHUNK, middle) or b""
            begin = data.find(b"\n") + 1
            if not begin or len(data) < begin + STAMP or data[begin : begin + STAMP - 1] >= stamp:
                high = middle
            else:
                low = middle + begin
        return low

    def first_at(self) -> datetime:
        """The time of the line at `place`, or of the first one; the far past when it cannot be told."""
        parts = self.parts()
        if not parts:
            return START
        index, lost = self._index(parts)
        offset = self.place.offset if self.place is not None and not lost else 0
        head = self._read(parts[index], STAMP, offset) or parts[index].head
        return _time(head) or START

    # --- lines -------------------------------------------------------------------------------------------------

    def parse(self, raw: bytes) -> LogLine:
        """One line of a file as a `LogLine`. A line that is not in our format keeps the time of the one before it."""
        owner, at = self.owner, _time(raw[:STAMP])
        stream = STREAMS.get(raw[STAMP + 1 : STAMP + 2].decode("latin-1"))
        if at is None or stream is None:
            text = raw.decode("utf-8", "backslashreplace")
            return LogLine(self._last, owner.deployment, owner.revision, owner.replica, "agent", text)
        self._last = at
        text = raw[STAMP + 3 :].decode("utf-8", "backslashreplace")
        return LogLine(at, owner.deployment, owner.revision, owner.replica, stream, text)


def text_of(raw: bytes) -> bytes:
    """The text of a line as it lies in a file, without its time and stream."""
    return raw[STAMP + 3 :]


def _split(data: bytes) -> list[bytes]:
    """Lines with their newlines, at b"\\n" alone: `splitlines` would also cut at a lone carriage return."""
    *whole, rest = data.split(b"\n")
    return [line + b"\n" for line in whole] + ([rest] if rest else [])


def _time(stamp: bytes) -> datetime | None:
    if len(stamp) != STAMP or stamp[-1:] != b"Z":
        return None
    try:
        return datetime.fromisoformat(stamp.decode("ascii"))
    except ValueError:
        return None
