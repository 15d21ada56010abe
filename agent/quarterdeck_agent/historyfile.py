"""The file that gauges are kept in for weeks: of every minute the mean and the maximum of each series.

One row holds one hour of one series as 60 pairs of four-byte floats, and rows lie in the order in which hours pass: a
minute touches few pages, a day is dropped in one piece, and a month of one series is 720 look-ups. One connection
writes, readers cannot. It knows no clock; what SQLite refuses is raised as `sqlite3.Error`.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from quarterdeck_agent.series import Key

FORMAT = 1
HOURS_A_DAY = 24
MINUTES_AN_HOUR = 60
BUSY_TIMEOUT = 5.0
WAL_SIZE = 4 << 20

SCHEMA = """
CREATE TABLE series (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, key TEXT NOT NULL, newest INTEGER NOT NULL, UNIQUE (name, key)
);
CREATE TABLE hours (
    hour INTEGER NOT NULL, series INTEGER NOT NULL, points BLOB NOT NULL, PRIMARY KEY (hour, series)
) WITHOUT ROWID;
"""
FIND = """
WITH RECURSIVE span (hour) AS (VALUES (:first) UNION ALL SELECT hour + 1 FROM span WHERE hour < :last)
SELECT span.hour, hours.points
FROM series CROSS JOIN span CROSS JOIN hours ON hours.hour = span.hour AND hours.series = series.id
WHERE series.name = :name AND series.key = :key AND length(hours.points) = :length
"""
KEEP = """
INSERT INTO hours (hour, series, points) VALUES (?, ?, ?)
ON CONFLICT (hour, series) DO UPDATE SET points = excluded.points
"""

OF_HOUR = "SELECT series, points FROM hours WHERE hour = ? AND length(points) = ?"

_PAIR = struct.Struct("<ff")
_EMPTY = _PAIR.pack(math.nan, math.nan) * MINUTES_AN_HOUR


Point = tuple[float, float]
"""A gauge over one minute: its mean and its maximum."""


class Minute(NamedTuple):
    """All gauges over one minute; `number` counts minutes since 1970."""

    number: int
    points: Mapping[Key, Point]


class Unreadable(sqlite3.DatabaseError):
    """The file is damaged, or of a format that only a newer agent knows."""


class HistoryFile:
    """The file opened for writing. To be used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open `path`, or make it. Raises `Unreadable` where it cannot be gone on with."""
        path.touch(mode=0o600)
        self._path, self._inode = path, path.stat().st_ino
        self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            self._prepare()
        except BaseException:
            self._db.close()
            raise

    @property
    def in_place(self) -> bool:
        """Whether the file is still there under its name: nobody finds what is written to one that was removed."""
        return self._path.exists() and self._path.stat().st_ino == self._inode

    def close(self) -> None:
        self._db.close()

    def keep(self, minutes: Sequence[Minute], *, since: int, size: int) -> None:
        """Write `minutes`, and drop what is older than the hour `since` or does not fit into `size` bytes.

        One transaction. Of what is too old one day goes an hour: a clock that is wrong for a while costs no month.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            begun = [self._add(minute) for minute in minutes]
            if any(begun):
                self._drop_old(since)
            self._drop_surplus(size)
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise
        self._give_back()

    def _prepare(self) -> None:
        sound = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if sound != "ok":
            raise Unreadable(f"quick_check says: {sound}")
        version = self._number("PRAGMA user_version")
        if version > FORMAT:
            raise Unreadable(f"the file has format {version}; this agent knows {FORMAT}")
        if version == 0:
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._db.execute("PRAGMA journal_mode = WAL")
        # A power cut may cost the newest minutes; the file stays whole.
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(f"PRAGMA journal_size_limit = {WAL_SIZE}")
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT")

    def _add(self, minute: Minute) -> bool:
        """Write one minute; tells whether it is the first of its hour."""
        hour, place = divmod(minute.number, MINUTES_AN_HOUR)
        ids = self._ids(minute.points)
        kept = dict(self._db.execute(OF_HOUR, (hour, len(_EMPTY))))
        rows = []
        for key, point in minute.points.items():
            points = bytearray(kept.get(ids[key], _EMPTY))
            _PAIR.pack_into(points, place * _PAIR.size, *merged(_PAIR.unpack_from(points, place * _PAIR.size), point))
            rows.append((hour, ids[key], points))
        self._db.executemany(KEEP, rows)
        begun = [(hour, series) for _, series, _ in rows if series not in kept]
        self._db.executemany("UPDATE series SET newest = max(newest, ?) WHERE id = ?", begun)
        return not kept

    def _ids(self, keys: Mapping[Key, Point]) -> dict[Key, int]:
        ids = {(name, key): number for number, name, key in self._db.execute("SELECT id, name, key FROM series")}
        for key in keys.keys() - ids.keys():
            added = self._db.execute("INSERT INTO series (name, key, newest) VALUES (?, ?, 0)", key)
            assert added.lastrowid is not None
            ids[key] = added.lastrowid
        return ids

    def _drop_old(self, since: int) -> None:
        oldest = self._db.execute("SELECT min(hour) FROM hours").fetchone()[0]
        if oldest is not None and oldest < since:
            self._drop(min(since, oldest + HOURS_A_DAY))

    def _drop_surplus(self, size: int) -> None:
        """Drop days, the oldest first, and of the last two days hours; the newest hour stays."""
        while self._used() > size:
            oldest, newest = self._db.execute("SELECT min(hour), max(hour) FROM hours").fetchone()
            if oldest is None or oldest == newest:
                return
            self._drop(oldest + (HOURS_A_DAY if oldest + 2 * HOURS_A_DAY <= newest else 1))

    def _drop(self, before: int) -> None:
        self._db.execute("DELETE FROM hours WHERE hour < ?", (before,))
        self._db.execute("DELETE FROM series WHERE newest < ?", (before,))

    def _give_back(self) -> None:
        """Shrink the file where much of it is unused. A little is left: the next hours take it."""
        unused = self._number("PRAGMA freelist_count")
        if unused > max(256, self._number("PRAGMA page_count") // 4):
            # As a script: `execute` would take one step of it, which is one page.
            self._db.executescript(f"PRAGMA incremental_vacuum({unused})")

    def _used(self) -> int:
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return pages * self._number("PRAGMA page_size")

    def _number(self, pragma: str) -> int:
        return int(self._db.execute(pragma).fetchone()[0])


def read(path: Path, key: Key, first: int, last: int) -> dict[int, Point] | None:
    """The measured minutes of one series from `first` to `last`; `None` where the file has no such series."""
    if not path.exists():
        return None
    found: dict[int, Point] = {}
    with _reader(path) as db:
        if not db.execute("SELECT 1 FROM series WHERE name = ? AND key = ?", key).fetchone():
            return None
        hours = {"first": first // MINUTES_AN_HOUR, "last": last // MINUTES_AN_HOUR}
        wanted = {"name": key[0], "key": key[1], "length": len(_EMPTY), **hours}
        for hour, points in db.execute(FIND, wanted):
            for number, (mean, peak) in enumerate(_PAIR.iter_unpack(points), hour * MINUTES_AN_HOUR):
                if mean == mean and first <= number <= last:  # not NaN
                    found[number] = mean, peak
    return found


def names(path: Path) -> tuple[Key, ...]:
    """Every series in the file."""
    if not path.exists():
        return ()
    with _reader(path) as db:
        return tuple((name, key) for name, key in db.execute("SELECT name, key FROM series ORDER BY name, key"))


def aside(path: Path) -> Path:
    """The name under which a damaged `path` is kept."""
    return path.with_name(f"{path.name}.damaged")


def put_aside(path: Path) -> Path:
    """Give the file another name, in place of the one put aside before, so that a new one can be begun."""
    kept = aside(path)
    for ending in ("", "-wal", "-shm"):
        kept.with_name(kept.name + ending).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + ending).rename(kept.with_name(kept.name + ending))
    return kept


def damaged(error: sqlite3.Error) -> bool:
    """Whether `error` says that the file itself is bad, so that trying again cannot help."""
    # sqlite_errorcode holds extended codes: the lowest byte is the primary one.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, Unreadable) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def merged(kept: tuple[float, ...], point: Point) -> Point:
    """Of a minute that came in two parts, as over a restart, their mean and the larger maximum."""
    return point if math.isnan(kept[0]) else ((kept[0] + point[0]) / 2, max(kept[1], point[1]))


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    db = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        db.execute("PRAGMA query_only = ON")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("BEGIN")
        yield db
    finally:
        db.close()
